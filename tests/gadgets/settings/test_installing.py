"""Installing pipelines into a Gadgetron: names of their own, and everything checked before anything is written."""

import pytest

from gadgets.settings.installing import install_pipelines
from gadgets.settings.pipelines import find_pipeline, list_pipelines
from recon_core.errors import ResourceError, SettingsError

SERVER = ("127.0.0.1", 9012)
#: Configurations that a stock Gadgetron 4.7.2 installs, with one of a method that cinestream has too.
STOCK = ("default.xml", "grappa.xml", "Generic_Cartesian_Grappa.xml", "external_python_acquisition_example.xml")
FOREIGN = "<gadgetronStreamConfiguration/><!-- not of cinestream: another -->"


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "home" / "share" / "gadgetron" / "config"
    folder.mkdir(parents=True)
    for name in STOCK:
        (folder / name).write_text(FOREIGN, encoding="utf-8")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("given", ["home", "config"])
def test_a_stock_gadgetron_gets_all_pipelines_next_to_its_own(given, config):
    before = contents(config)
    written = install_pipelines(str(config.parents[2] if given == "home" else config), *SERVER)
    packaged = list_pipelines()
    alone = [name for name in packaged if not packaged[name].needs_gadgetron]
    expected = {f"cinestream_{name}": packaged[name].text for name in packaged}
    expected |= {f"cinestream_{name}-connect": packaged[name].through_server(*SERVER).text for name in alone}
    assert {path.stem: path.read_text(encoding="utf-8") for path in written} == expected
    assert contents(config) == before | {path.name: path.read_bytes() for path in written}


def test_an_installed_name_is_that_of_the_same_pipeline_here(config):
    for path in install_pipelines(str(config), *SERVER):
        if not path.stem.endswith(("-stock-front", "-stock-behind")):
            name = path.stem.removeprefix("cinestream_").removesuffix("-connect")
            assert find_pipeline(path.name) == list_pipelines()[name]


def test_installing_again_replaces_our_own(config):
    for path in install_pipelines(str(config), *SERVER):
        older = path.read_text(encoding="utf-8").replace("<method>", "<!-- older --><method>")
        path.write_text(older, encoding="utf-8")
    for path in install_pipelines(str(config), *SERVER):
        assert "older" not in path.read_text(encoding="utf-8")


def test_nothing_is_written_if_one_name_is_taken(config):
    names = ["cinestream_unet3d_mr.xml", "cinestream_zero_filled-connect.xml"]  # late in the order of writing
    for name in names:
        (config / name).write_bytes(b"<configuration>\xff mine, with cinestream within</configuration>")
    before = contents(config)
    with pytest.raises(SettingsError, match=f"{names[0]}, .*{names[1]} exists and is not a cinestream pipeline"):
        install_pipelines(str(config), *SERVER)
    assert contents(config) == before


@pytest.mark.parametrize("given", ["", " ", "empty", "missing", "file"])
def test_what_is_no_folder_of_a_gadgetron_is_refused(given, tmp_path, monkeypatch):
    """As where GADGETRON_HOME is not set, or set to something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="is GADGETRON_HOME set" if not given.strip() else "home of a Gadgetron"):
        install_pipelines(given, *SERVER)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_nothing_is_left_where_not_all_can_be_written(config):
    """A folder in the place of one of the files stands for whatever fails in writing."""
    (config / "cinestream_promptmr.xml").mkdir()
    before = sorted(path.name for path in config.iterdir())
    with pytest.raises(ResourceError, match="cinestream_promptmr"):
        install_pipelines(str(config), *SERVER)
    assert sorted(path.name for path in config.iterdir()) == before


def test_a_full_disk_leaves_nothing(config, monkeypatch):
    before, write = contents(config), type(config).write_text

    def full(path, text, **options):
        if "unet3d_mr" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(type(config), "write_text", full)
    with pytest.raises(ResourceError, match="No space left"):
        install_pipelines(str(config), *SERVER)
    assert contents(config) == before
