"""``cinestream pipelines``: the list, and what is installed."""

import re

import pytest

from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import FIELDS


def test_pipelines_lists_all_with_what_they_need_and_all_settings(tmp_path, run):
    (tmp_path / "latin.xml").write_bytes(b"<!--\n  Data: caf\xe9\n--><configuration/>")
    status, out, _ = run("pipelines", "--pipelines", tmp_path)
    assert status == 0
    for name in [*list_pipelines(), "latin", *FIELDS]:
        assert re.search(rf"^ *{name}\b", out, re.MULTILINE)
    assert out.count("Data:") == len(list_pipelines()) + 1
    assert "NAME-connect" in out


def test_pipelines_are_installed_into_a_gadgetron(tmp_path, run):
    inside = tmp_path / "share" / "gadgetron" / "config"
    inside.mkdir(parents=True)
    for _ in range(2):  # its own files it may replace
        status, out, _ = run("pipelines", "--install", tmp_path)
        assert status == 0
        assert sorted(out.split()) == sorted(str(path) for path in inside.iterdir())
    assert run("pipelines", "--install", tmp_path, "--address", "10.1.2.3", "--port", "9999")[0] == 0
    text = (inside / "cinestream_cg_sense-connect.xml").read_text(encoding="utf-8")
    assert '<connect address="10.1.2.3" port="9999"/>' in text
    foreign = inside / "cinestream_cg_sense.xml"
    foreign.write_text("<gadgetronStreamConfiguration/>", encoding="utf-8")
    status, _, err = run("pipelines", "--install", tmp_path)
    assert status == 2
    assert str(foreign) in err


def test_a_home_that_is_not_set_installs_nothing(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("pipelines", "--install", "")
    assert (status, out, "GADGETRON_HOME" in err) == (2, "", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--address", "10.1.2.3"], ["--port", "9999"]])
def test_a_server_without_a_folder_to_install_into_is_refused(options, run):
    status, _, err = run("pipelines", *options)
    assert (status, "--install DIR" in err) == (2, True)


def test_a_server_that_cannot_be_is_refused_before_anything_is_written(tmp_path, run):
    inside = tmp_path / "share" / "gadgetron" / "config"
    inside.mkdir(parents=True)
    for options in (["--port", "0"], ["--address", "a b"]):
        assert run("pipelines", "--install", tmp_path, *options)[0] == 2
    assert list(inside.iterdir()) == []


def test_a_pipeline_by_name_comes_with_what_it_changes(tmp_path, run):
    own = "<!--\n mine\n Data: readouts\n--><configuration><method>grappa</method><series>9</series></configuration>"
    (tmp_path / "own.xml").write_text(own, encoding="utf-8")
    status, out, _ = run("pipelines", "own", "cg_sense-stock-front", "--pipelines", tmp_path)
    assert status == 0
    assert out.startswith("own\n    Data: readouts\n    method=grappa\n    series=9\ncg_sense-stock-front\n")
    status, _, err = run("pipelines", "cg-sens")
    assert (status, "did you mean cg_sense" in err) == (2, True)
    assert run("pipelines", "cg_sense", "--install", tmp_path)[0] == 2
