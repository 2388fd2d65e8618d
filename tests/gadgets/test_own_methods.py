"""A method of one's own through command line, Python, server and Gadgetron; and what a peer may not name."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from gadgets import reconstruct_file, reconstruct_stream
from gadgets.commands.main import main
from gadgets.connection.server import SharedEngine
from gadgets.files.images import read_images
from gadgets.files.raw import write_scan
from gadgets.settings.fire import parse_json_parameters
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import Close, ConfigFile, ConfigText, Header, Text
from recon_core.methods import OWN_METHODS
from recon_core.networks.golden import fill
from recon_core.own_methods import allow_methods, load_method
from tests.helpers.gadgetron_parent import Gadgetron
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import serving, talk

pytestmark = pytest.mark.usefixtures("_coil_maps_once")

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=4, slices=2, coils=3, sampling="interleaved", acceleration=4, seed=3)
NAME = "view_sharing"


@pytest.fixture(autouse=True)
def _examples(monkeypatch, tmp_path):
    monkeypatch.setenv("CINESTREAM_METHODS", str(REPOSITORY / "docs" / "examples"))
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture(scope="module")
def simulated():
    scan = simulate(PLAN)
    return scan.header, list(scan.items())


@pytest.fixture(scope="module")
def raw(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_scan(path, *simulated)
    return path


@pytest.fixture
def expected(raw):
    """``(slice, frame, y, x)`` as the Python interface gives them."""
    scan = reconstruct_file(raw, "zero_filled", method=NAME)
    assert [cine.method for cine in scan] == [NAME, NAME]
    OWN_METHODS.clear()
    return np.stack([cine.image for cine in scan])


@pytest.fixture
def run(capsys):
    """Run a command; gives its exit status, output and error output."""

    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


def pixels(images):
    found = {(int(i.header["slice"]), int(i.header["phase"])): i.data[0, 0] for i in images}
    return np.stack([[found[place, frame] for frame in range(PLAN.frames)] for place in range(PLAN.slices)])


def pipeline(method):
    """A whole pipeline, as a peer sends it."""
    return (
        '<?xml version="1.0"?><configuration><version>2</version><readers/><writers/><stream><external>'
        '<execute name="gadgets.external" target="reconstruct" type="python"/>'
        f"<configuration><method>{method}</method></configuration></external></stream></configuration>"
    )


# --- where it can be named --------------------------------------------------------------------------------------------


def test_command_line(raw, expected, run, tmp_path):
    status, out, _ = run("replay", raw, "-p", "cg_sense", "--set", f"method={NAME}", "-o", tmp_path / "images.h5")
    assert status == 0
    assert "8 images of 2 slices" in out
    np.testing.assert_array_equal(pixels(read_images(tmp_path / "images.h5")[1]), expected)


def test_pipeline_file(raw, expected, run, tmp_path):
    (tmp_path / "mine.xml").write_text(pipeline(NAME), encoding="utf-8")
    status, _, _ = run("replay", raw, "-p", tmp_path / "mine.xml", "-o", tmp_path / "images.h5")
    assert status == 0
    np.testing.assert_array_equal(pixels(read_images(tmp_path / "images.h5")[1]), expected)


def test_options_of_the_method(raw, expected, run, tmp_path):
    text = pipeline(NAME).replace("</method>", f"</method><{NAME}.reach>1</{NAME}.reach>")
    (tmp_path / "mine.xml").write_text(text, encoding="utf-8")
    doors = [
        ["-p", tmp_path / "mine.xml"],
        ["-p", "cg_sense", "--set", f"method={NAME}", "--set", f"{NAME}.reach=1"],
    ]
    images = []
    for number, door in enumerate(doors):
        assert run("replay", raw, *door, "-o", tmp_path / f"{number}.h5")[0] == 0
        images.append(pixels(read_images(tmp_path / f"{number}.h5")[1]))
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], expected)
    status, _, err = run("replay", raw, "-p", NAME, "--set", f"{NAME}.size=1", "-o", tmp_path / "none.h5")
    assert status == 2
    assert "Traceback" not in err


def test_stream(simulated, expected):
    header, items = simulated
    images = [cine.image for cine in reconstruct_stream(items, "cg_sense", header=header, method=NAME)]
    np.testing.assert_array_equal(images, expected)


def test_server(simulated, expected):
    header, items = simulated
    allow_methods([NAME])
    with serving(SharedEngine()()) as server:
        answer = talk(server, ConfigText(pipeline(NAME)), Header(header), *items, Close())
    assert answer.closed
    np.testing.assert_array_equal(pixels(answer.images), expected)


@pytest.mark.parametrize("key", [f"{NAME}.reach", "ViewSharing.Reach"])
def test_options_in_the_json_of_a_client(simulated, expected, key):
    header, items = simulated
    allow_methods([NAME])
    wanted = {"method": NAME, key: "1", f"{NAME}.size": 3}
    text = Text(json.dumps({"parameters": wanted}))
    with serving(SharedEngine()()) as server:
        answer = talk(server, ConfigFile("zero_filled"), Header(header), text, *items, Close())
    near = reconstruct_stream(items, "zero_filled", header=header, method=NAME, **{f"{NAME}.reach": 1})
    np.testing.assert_array_equal(pixels(answer.images), [cine.image for cine in near])
    assert not np.array_equal(pixels(answer.images), expected)
    assert any(f"parameters that are no settings are not used: {NAME}.size" in text for text in answer.texts)


def test_options_in_the_json_of_a_client_import_only_what_is_allowed(trap):
    assert parse_json_parameters('{"parameters": {"trap.reach": 1}}').unknown == ("trap.reach",)
    assert not trap.exists()
    trap.parent.joinpath("methods", "broken.py").write_text("raise RuntimeError('out of luck')", encoding="utf-8")
    allow_methods(["broken"])
    assert parse_json_parameters('{"parameters": {"broken.reach": 1}}').unknown == ("broken.reach",)


@pytest.mark.slow
def test_gadgetron(simulated, expected):
    header, items = simulated
    outcome = Gadgetron(pipeline(NAME), environment={"CINESTREAM_ALLOW_METHODS": NAME}).run(header, items)
    np.testing.assert_array_equal(pixels(outcome.images), expected)


# --- where it cannot --------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A method that must not be imported."""
    folder = tmp_path / "methods"
    folder.mkdir()
    text = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\nMETHOD = lambda data: data\n"
    (folder / "trap.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("CINESTREAM_METHODS", str(folder))
    return tmp_path / "sprung"


@pytest.mark.parametrize("name", ["trap", "trap.py", "os", "gadgets.external:reconstruct", "/tmp/trap.py", "../trap"])
def test_a_peer_names_nothing_that_is_not_allowed(simulated, trap, name):
    header, items = simulated
    with serving(SharedEngine()()) as server:
        answer = talk(server, ConfigText(pipeline(name)), Header(header), *items, Close())
    assert answer.images == []
    assert "setting 'method' must be one of" in answer.texts[0]
    assert not trap.exists()
    assert "cinestream_method_trap" not in sys.modules


def test_what_is_allowed_does_not_allow_others(simulated, trap):
    header, items = simulated
    allow_methods(["trap"])
    with serving(SharedEngine()()) as server:
        answer = talk(server, ConfigText(pipeline(NAME)), Header(header), *items, Close())
    assert answer.images == []


def test_a_gadgetron_names_nothing_that_is_not_allowed(simulated, trap):
    header, items = simulated
    outcome = Gadgetron(pipeline("trap")).run(header, items)
    assert outcome.images == []
    assert not trap.exists()


def test_serve_refuses_methods_that_there_are_not(run):
    status, _, err = run("serve", "--port", "0", "--allow-method", "magic")
    assert status == 2
    assert "there is no method 'magic'" in err
    assert NAME in err


def test_the_server_says_which_methods_will_fail(trap, caplog, monkeypatch):
    trap.parent.joinpath("methods", "broken.py").write_text("raise RuntimeError('out of luck')", encoding="utf-8")
    allow_methods(["broken"])
    with serving(SharedEngine()()) as server:
        server._warm_up()
    assert "scans that ask for the method broken will fail: " in caplog.text
    assert "out of luck" in caplog.text


# --- commands ---------------------------------------------------------------------------------------------------------


def test_methods_are_listed(run, tmp_path, monkeypatch):
    status, out, _ = run("methods")
    assert status == 0
    summary = "A sliding window over the frames, as wide as each line needs it; lines that no frame has stay empty"
    assert f"\n{NAME}\n    {summary}\n    {NAME}.reach (int, default 0): how many frames away" in out
    assert "\nsmall_unrolled\n    Cascades of a residual 3-D convolutional denoiser" in out
    assert "run: cinestream import-weights small_unrolled FILE" in out


def test_a_method_that_cannot_be_imported_is_listed(run, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of luck')", encoding="utf-8")
    monkeypatch.setenv("CINESTREAM_METHODS", str(tmp_path))
    status, out, _ = run("methods")
    assert status == 0
    assert "\nbroken\n    cannot be used: " in out
    assert "out of luck" in out


def test_weights(raw, run, tmp_path):
    kind = load_method("small_unrolled")
    network = kind(kind.Config(cascades=2, channels=4))
    fill(network)
    torch.save(network.state_dict(), tmp_path / "trained.pth")
    status, out, _ = run(
        *("import-weights", "small_unrolled", tmp_path / "trained.pth", "--folder", tmp_path / "weights"),
        *("--config", "cascades=2", "--config", "channels=4", "--range", "coils=8:16"),
    )
    assert status == 0
    assert "is used by method=small_unrolled, weights=small_unrolled" in out
    with pytest.warns(UserWarning, match="the scan is not like the training of the weights small_unrolled"):
        scan = reconstruct_file(raw, method="small_unrolled")
    assert scan[0].method == "kt_sense"


def test_training(run, tmp_path):
    plan = {"network": {"cascades": 1, "channels": 4}, "steps": 3, "frames": [4, 4], "lines": [24, 24], "width": 8}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**plan, "precision": "float32"}), encoding="utf-8")
    arguments = ("train", "small_unrolled", "--folder", tmp_path / "training", "--config", tmp_path / "plan.yaml")
    status, out, err = run(*arguments, "--minutes", "0")
    assert (status, err) == (0, "")
    assert "small_unrolled-small: " in out
    assert "to be continued by the same command" in out


@pytest.mark.parametrize(("name", "message"), [("magic", "there is no method 'magic'"), (NAME, "is no network")])
def test_other_methods_have_no_weights(run, name, message):
    status, _, err = run("import-weights", name, "trained.pth")
    assert status == 2
    assert message in err
