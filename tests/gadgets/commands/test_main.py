"""The command line as people use it: exit status, messages, files; never a traceback for what a user can do wrong."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import gadgets.commands as commands_package
from gadgets.commands.main import COMMANDS, main, make_parser
from gadgets.connection.server import Server
from gadgets.files.images import read_images
from gadgets.files.raw import open_scan, write_scan
from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import FIELDS
from gadgets.simulation import ScanPlan, write_simulation
from gadgets.wire.messages import Readouts
from recon_core.methods import METHODS
from recon_core.trust.ranges import TrainingRange
from tests.helpers.builders import readouts as random_readouts
from tests.helpers.networks import tiny, write_tiny_weights

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=3, coils=3, acceleration=2, acs_lines=10, seed=3)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_simulation(PLAN, path)
    return path


@pytest.fixture
def damaged(scan, tmp_path):
    """The scan with two readouts of another coil count among the others."""
    path = tmp_path / "damaged.h5"
    with open_scan(scan) as raw:
        items = list(raw.items)
        write_scan(path, raw.header, [*items[:-1], random_readouts(2, coils=5, samples=96), items[-1]])
    return path


@pytest.fixture
def run(capsys):
    """Run a command; gives its exit status, output and error output. No user error may show a traceback."""

    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


def program(*arguments, **options):
    """Run it as a process of its own."""
    command = [sys.executable, "-m", "gadgets", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# --- help -------------------------------------------------------------------------------------------------------------


NAMES = [command.NAME for command in COMMANDS]


def parsers():
    (commands,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return commands.choices


def test_every_module_of_the_package_is_a_command_or_serves_them_all():
    folder = Path(commands_package.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "main", "arguments", "console"}
    assert modules == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert {name.replace("-", "_") for name in NAMES} == modules
    assert set(parsers()) == set(NAMES)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_examples_are_calls_that_the_parser_takes(command):
    for line in command.EXAMPLES.splitlines():
        words = line.split()
        assert words[:2] == ["cinestream", command.NAME]
        assert make_parser().parse_args(words[1:]).run is command.run
        assert f"  {line}\n" in make_parser().format_help()
        assert f"  {line}\n" in parsers()[command.NAME].format_help()


@pytest.mark.parametrize("command", NAMES)
def test_help_mentions_every_option(command, run):
    status, out, _ = run(command, "--help")
    assert status == 0
    for action in parsers()[command]._actions:
        assert all(option in out for option in action.option_strings)
        assert not action.option_strings or action.help
    if command in {"replay", "serve"}:
        assert all(f"  {name}  (" in out for name in FIELDS)


def test_help_and_version(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in NAMES)
    status, out, _ = run("--version")
    assert status == 0
    assert re.fullmatch(r"cinestream \d+\.\d+\.\d+\S*\n", out)
    assert run()[0] == 2
    assert run("unknown")[0] == 2


def test_help_comes_without_heavy_imports():
    code = "import sys; from gadgets.commands.main import make_parser; make_parser().format_help(); print(*sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "h5py", "PIL", "ismrmrd", "jinja2", "nibabel"} & set(outcome.stdout.split())


# --- replay -----------------------------------------------------------------------------------------------------------


def test_a_good_replay(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    status, out, _ = run("replay", scan, "-o", output, "-p", "zero_filled", "--set", "series=5", "--set", "scale = 2.0")
    assert status == 0
    assert f"3 images of 1 slices in {output}" in out
    images = read_images(output)
    assert list(images) == [5]
    assert len(images[5]) == 3
    assert "zero_filled" in images[5][0].attributes


def test_what_is_made_beside_the_images(scan, tmp_path, run):
    made = {name: tmp_path / f"cine.{name}" for name in ("gif", "html")}
    truth = scan.with_name("scan_truth.npz")
    options = ["--gif", made["gif"], "--report", made["html"], "--truth", truth]
    status, out, _ = run("replay", scan, "-o", tmp_path / "images.h5", *options)
    assert status == 0
    with Picture.open(made["gif"]) as picture:
        assert picture.n_frames == 3
    page = made["html"].read_text(encoding="utf-8")
    assert "scan.h5" in page
    assert "cg_sense" in page
    assert 0.0 < float(re.search(r"(?i)against the truth:.*?nrmse ([\d.e+-]+)", out).group(1)) < 0.2


def test_the_truth_alone_is_enough_to_measure(scan, tmp_path, run):
    truth = scan.with_name("scan_truth.npz")
    status, out, _ = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", truth)
    assert status == 0
    assert "against the truth" in out


def test_a_pipeline_of_ones_own(scan, tmp_path, run):
    own = tmp_path / "own.xml"
    own.write_text("<configuration><method>zero_filled</method><series>9</series></configuration>", encoding="utf-8")
    assert run("replay", scan, "-o", tmp_path / "a.h5", "-p", own)[0] == 0
    assert run("replay", scan, "-o", tmp_path / "b.h5", "-p", "own", "--pipelines", tmp_path)[0] == 0
    assert list(read_images(tmp_path / "a.h5")) == list(read_images(tmp_path / "b.h5")) == [9]


def test_damaged_data_give_the_images_and_status_1(damaged, tmp_path, run):
    status, out, _ = run("replay", damaged, "-o", tmp_path / "images.h5", "--report", tmp_path / "report.html")
    assert status == 1
    assert "3 images" in out
    assert "5 coils" in tmp_path.joinpath("report.html").read_text(encoding="utf-8")
    assert len(read_images(tmp_path / "images.h5")[1]) == 3


def test_the_log_tells_of_damage(damaged, tmp_path):
    outcome = program("replay", damaged, "-o", tmp_path / "images.h5")
    assert outcome.returncode == 1
    assert re.search(r"^ERROR readout \d+ has 5 coils, expected 3", outcome.stderr, re.MULTILINE)
    assert "%|" not in outcome.stderr  # no progress bar: nobody watches
    assert "\r" not in outcome.stderr


@pytest.mark.parametrize(("share", "images", "expected"), [(0.55, 2, 1), (0.9, 3, 0)])
def test_a_scan_that_ended_early_gives_what_there_is(share, images, expected, scan, tmp_path, run):
    """Status 1 if images are missing; a frame that only lacks lines has an image, whose comment says so."""
    short = tmp_path / "short.h5"
    with open_scan(scan) as raw:
        kept, items = int(share * (raw.readouts - PLAN.noise_readouts)) + PLAN.noise_readouts, []
        for item in raw.items:
            items.append(item[:kept] if isinstance(item, Readouts) else item)
            kept -= len(items[-1]) if isinstance(item, Readouts) else 0
        write_scan(short, raw.header, [item for item in items if not isinstance(item, Readouts) or len(item)])
    status, out, _ = run("replay", short, "-o", tmp_path / "images.h5")
    assert status == expected
    assert f"{images} images of 1 slices" in out
    assert "lacks lines in 1 of" in read_images(tmp_path / "images.h5")[1][0].attributes


def test_no_image_at_all_is_status_1(scan, tmp_path, run):
    empty = tmp_path / "empty.h5"
    with open_scan(scan) as raw:
        write_scan(empty, raw.header, [])
    status, _, err = run("replay", empty, "-o", tmp_path / "images.h5")
    assert status == 1
    assert "no image readouts" in err


def test_noise_of_another_file(tmp_path, run):
    scan, noise, store = tmp_path / "scan.h5", tmp_path / "scan_noise.h5", tmp_path / "store"
    sizes = ["--matrix-x", "32", "--matrix-y", "24", "--frames", "2", "--coils", "3", "--sampling", "full"]
    status, out, _ = run("simulate", scan, *sizes, "--noise-scan", "dependent")
    assert (status, f"its noise in {noise}" in out) == (0, True)

    def origin(*options):
        output = tmp_path / "images.h5"
        status, _, err = run("replay", scan, "-p", "zero_filled", "-o", output, "--overwrite", *options)
        assert status == 0, err
        return re.search("cinestream_noise</name><value>(.*?)[,<]", read_images(output)[1][0].attributes).group(1)

    assert origin() == "none"
    assert origin("--noise", noise) == "file scan_noise.h5"
    assert origin("--noise", f"{noise}:dataset") == "file scan_noise.h5"
    assert origin("--noise-store", store) == "none"
    status, out, _ = run("replay", noise, "-o", tmp_path / "none.h5", "--noise-store", store)
    assert (status, "0 images of 0 slices" in out) == (0, True)
    assert origin("--noise-store", store) == "store"
    assert origin("--noise-store", store, "--noise-days", "0") == "none"
    status, _, err = run("replay", scan, "-o", tmp_path / "none.h5", "--overwrite", "--noise", scan)
    assert (status, "no noise readouts" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["-p", "magic"], ["magic", *sorted(list_pipelines())]),
        (["-p", "../magic.xml"], ["bare name", "../magic.xml"]),
        (["--set", "speed=1"], ["speed", *FIELDS]),
        (["--set", "iterations"], ["key=value", "iterations"]),
        (["--set", "iterations=many"], ["iterations", "whole number", "many"]),
        (["--set", "method=magic"], ["method", *METHODS, "magic"]),
        (["--pipelines", "/no/such/folder"], ["/no/such/folder"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_wrong_call_is_status_2_and_names_what_is_valid(options, texts, scan, tmp_path, run):
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", *options)
    assert status == 2
    assert all(text in err for text in texts)
    assert not (tmp_path / "images.h5").exists()


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    output.write_text("precious", encoding="utf-8")
    status, _, err = run("replay", scan, "-o", output)
    assert status == 2
    assert "--overwrite" in err
    assert output.read_text(encoding="utf-8") == "precious"
    assert run("replay", scan, "-o", output, "--overwrite")[0] == 0
    assert len(read_images(output)[1]) == 3


@pytest.mark.parametrize("option", ["-o", "--gif", "--report", "link"])
def test_the_raw_data_are_never_written_over(option, scan, tmp_path, run):
    source = Path(shutil.copy(scan, tmp_path))
    target = source
    if option == "link":
        target = tmp_path / "link.h5"
        target.symlink_to(source)
    options = ["-o", target] if option in {"-o", "link"} else ["-o", tmp_path / "images.h5", option, target]
    status, _, err = run("replay", source, *options, "--overwrite")
    assert status == 2
    assert "raw data" in err
    assert source.read_bytes() == scan.read_bytes()


@pytest.mark.parametrize("what", ["missing", "a folder", "text", "cut"])
def test_an_input_that_cannot_be_read(what, scan, tmp_path, run):
    source = tmp_path / "in.h5"
    if what == "a folder":
        source.mkdir()
    elif what != "missing":
        source.write_bytes(b"dear diary" if what == "text" else scan.read_bytes()[:1500])
    status, _, err = run("replay", source, "-o", tmp_path / "images.h5")
    assert status == 1
    assert str(source) in err


@pytest.mark.parametrize("what", ["missing", "empty", "npy", "cut", "other", "hdf5"])
def test_a_truth_that_cannot_be_read(what, scan, tmp_path, run):
    truth = tmp_path / "truth.npz"
    if what == "npy":
        np.save(tmp_path / "array.npy", np.ones(3))
        (tmp_path / "array.npy").rename(truth)
    elif what == "other":
        np.savez(truth, picture=np.ones(3))
    elif what != "missing":
        original = {"empty": b"", "cut": scan.with_name("scan_truth.npz").read_bytes()[:300], "hdf5": scan.read_bytes()}
        truth.write_bytes(original[what])
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", truth)
    assert status == 1
    assert f"cannot read the truth {truth}" in err
    assert not (tmp_path / "images.h5").exists()


def test_the_truth_of_another_scan(scan, tmp_path, run):
    np.savez(tmp_path / "truth.npz", image=np.ones((1, 2, 3, 4)))
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", tmp_path / "truth.npz")
    assert status in {1, 2}
    assert "does not fit" in err
    assert len(read_images(tmp_path / "images.h5")[1]) == 3


@pytest.mark.parametrize("option", ["-o", "--gif", "--report"])
def test_an_output_that_cannot_be_made(option, scan, tmp_path, run):
    options = [] if option == "-o" else ["-o", tmp_path / "images.h5"]
    target = tmp_path / "no" / "such" / "file"
    status, _, err = run("replay", scan, *options, option, target)
    assert status == 1
    assert f"cannot write {target}" in err


@pytest.mark.parametrize("command", ["replay", "simulate"])
def test_a_full_disk_is_said_in_words(command, scan, tmp_path):
    output = tmp_path / "out.h5"
    arguments = [scan, "-o", output] if command == "replay" else [output, "--frames", "2", "--matrix-y", "48"]
    limit = ["prlimit", "--fsize=8000"] if shutil.which("prlimit") else pytest.skip("there is no prlimit here")
    line = [*limit, sys.executable, "-m", "gadgets", command, *map(str, arguments)]
    outcome = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 1
    assert f"cinestream: cannot write {output}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


# --- simulate, methods, pipelines -------------------------------------------------------------------------------------


def test_simulate_takes_every_field_of_the_plan(tmp_path, run):
    output = tmp_path / "scan.h5"
    options = ["--matrix-x", 32, "--matrix-y", 24, "--frames", 2, "--coils", 2, "--sampling", "full", "--slices", 2]
    options += ["--no-waveforms", "--ectopic-beat", "--snr", 30, "--vendor", "A & B", "--noise-readouts", 4]
    status, out, _ = run("simulate", output, *options)
    assert status == 0
    assert str(output) in out
    assert "scan_truth.npz" in out
    with open_scan(output) as raw:
        assert raw.readouts == 4 + 2 * 2 * 24
        assert "A &amp; B" in raw.header
        assert all(isinstance(item, Readouts) for item in raw.items)
    with np.load(tmp_path / "scan_truth.npz") as truth:
        assert truth["image"].shape == (2, 2, 24, 32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--frames", "0"], "frames must be at least 1"),
        (["--frames", "few"], "few"),
        (["--snr", "nan"], "snr"),
        (["--sampling", "radial"], "variable_density"),
        (["--acs-lines", "500"], "do not fit"),
        (["--respiration", "5"], "real-time"),
        (["--segments", "100"], "per beat"),
    ],
)
def test_a_scan_that_cannot_be_is_status_2(options, text, tmp_path, run):
    status, _, err = run("simulate", tmp_path / "scan.h5", *options)
    assert status == 2
    assert text in err
    assert list(tmp_path.iterdir()) == []


def test_methods_lists_all_with_their_papers(run):
    status, out, _ = run("methods")
    assert status == 0
    assert all(f"{name}\n    {info.summary}\n    {info.reference}\n" in out for name, info in METHODS.items())
    assert all(info.reference.startswith("https://") for info in METHODS.values())


def test_methods_says_which_weights_there_are(tmp_path, run, monkeypatch):
    trained = TrainingRange.parse({"acceleration": [3, 12]})
    write_tiny_weights(tmp_path, "crunet_mr", range=trained, licence="Apache-2.0")
    write_tiny_weights(tmp_path, "cinenet", name="mine")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    _, out, _ = run("methods")
    assert "    weights crunet_mr: acceleration 3 to 12 (Apache-2.0)\n" in out
    assert "    weights mine: training not recorded\n" in out
    assert "    no weights: scans go to the fallback; cinestream import-weights promptmr FILE brings some\n" in out


def test_imported_weights_make_images(tmp_path, scan, run, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    network = tiny("crunet_mr")
    tensors = {network.authors_key(key): value for key, value in network.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "authors.pth")
    config = ["--config", "cascades=2", "--config", "channels=4"]
    facts = ["--range", "acceleration=1:8", "--range", "patterns=constant,full", "--licence", "CC0"]
    status, out, err = run("import-weights", "crunet_mr", tmp_path / "authors.pth", *config, *facts)
    assert (status, err) == (0, "")
    assert str(tmp_path / "data" / "cinestream" / "weights" / "crunet_mr.safetensors") in out
    _, out, _ = run("methods")
    assert "weights crunet_mr: acceleration 1 to 8, constant or full pattern (CC0)" in out
    assert run("replay", scan, "-p", "crunet_mr", "-o", tmp_path / "images.h5")[0] == 0
    (images,) = read_images(tmp_path / "images.h5").values()
    assert all("cinestream crunet_mr; weights crunet_mr" in image.attributes for image in images)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ([], ["CRUNetMR", "missing"]),
        (["--config", "colour=red"], ["colour", "channels"]),
        (["--range", "acceleration=fast"], ["acceleration", "least, most"]),
        (["--range", "speed=1:2"], ["speed", "acceleration"]),
        (["--name", "../weights"], ["../weights"]),
    ],
    ids=["another network", "config", "range", "unknown range", "name"],
)
def test_weights_that_do_not_fit_are_not_imported(options, texts, tmp_path, run, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    status, _, err = run("import-weights", "crunet_mr", tmp_path / "other.pth", *options)
    assert status in (1, 2)
    assert all(text in err for text in texts)
    assert not (tmp_path / "data").exists()


def test_a_reader_that_leaves_is_no_trouble():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "gadgets", "pipelines"]
        outcome = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (1, "")


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
    assert {path.stem.removesuffix("-connect") for path in inside.iterdir()} == set(list_pipelines())
    assert run("pipelines", "--install", tmp_path, "--address", "10.1.2.3", "--port", "9999")[0] == 0
    assert '<connect address="10.1.2.3" port="9999"/>' in (inside / "cg_sense-connect.xml").read_text(encoding="utf-8")
    foreign = inside / "cg_sense.xml"
    foreign.write_text("<gadgetronStreamConfiguration/>", encoding="utf-8")
    status, _, err = run("pipelines", "--install", tmp_path)
    assert status == 2
    assert str(foreign) in err
    assert foreign.read_text(encoding="utf-8") == "<gadgetronStreamConfiguration/>"


# --- serve and send ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--alias", "openrecon=magic"], ["magic", *sorted(list_pipelines())]),
        (["--alias", "openrecon"], ["openrecon"]),
        (["--set", "speed=1"], ["speed", *FIELDS]),
        (["--set", "method=magic"], ["magic", *METHODS]),
        (["--port", "99999"], ["65535"]),
        (["--port", "-1"], ["65535"]),
        (["--queue-gib", "nan"], ["nan"]),
        (["--queue-gib", "inf"], ["inf"]),
        (["--grace", "-1"], ["-1"]),
        (["--pipelines", "/no/such/folder"], ["/no/such/folder"]),
        (["--ct-folder", "/no/such/folder"], ["/no/such/folder"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_serve_refuses_what_would_fail_in_every_scan(options, texts, run):
    status, _, err = run("serve", "--port", "0", *options)
    assert status == 2
    assert all(text in err for text in texts)


def test_serve_says_when_the_address_is_not_to_be_had(run):
    server = Server(port=0)
    status, _, err = run("serve", "--port", server.address[1])
    server.stop()
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {server.address[1]}" in err
    status, _, err = run("serve", "--host", "..")
    assert status == 1
    assert "cannot listen on .." in err


def test_serve_and_send_as_processes(scan, tmp_path):
    raw, store = tmp_path / "raw", tmp_path / "store"
    command = ["serve", "--port", "0", "--save-raw", str(raw), "--alias", "openrecon=zero_filled", "--set", "series=4"]
    command += ["--noise-store", str(store)]
    # unbuffered pipes would hide a missing flush
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "gadgets", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        watchdog = threading.Timer(60, server.kill)
        watchdog.start()
        try:
            port = re.fullmatch(r"cinestream \S+ listens on 127\.0\.0\.1 port (\d+)\n", server.stdout.readline()).group(
                1
            )
            output = tmp_path / "images.h5"
            sent = program("send", scan, "-o", output, "--port", port, "-c", "openrecon")
            assert (sent.returncode, sent.stderr) == (0, "")
            assert f"3 images in {output}" in sent.stdout
            noise = tmp_path / "noise.h5"
            with open_scan(scan) as opened:
                write_scan(noise, opened.header, [next(item for item in opened.items if isinstance(item, Readouts))])
            alone = program("send", noise, "-o", tmp_path / "no.h5", "--port", port, "-c", "openrecon")
            assert (alone.returncode, alone.stderr) == (0, "")
            assert [path.suffix for path in store.iterdir()] == [".npz"]
            bad = program("send", scan, "-o", tmp_path / "none.h5", "--port", port, "-c", "magic")
            assert bad.returncode == 1
            assert "magic" in bad.stderr
            assert "openrecon" in bad.stderr or "zero_filled" in bad.stderr
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            watchdog.cancel()
            server.kill()
    images = read_images(output)
    assert list(images) == [4]
    assert "zero_filled" in images[4][0].attributes
    saved = min(raw.iterdir())
    assert main(["replay", str(saved), "-o", str(tmp_path / "again.h5"), "-p", "zero_filled", "--set", "series=4"]) == 0
    again = read_images(tmp_path / "again.h5")[4]
    assert [image.data.tobytes() for image in again] == [image.data.tobytes() for image in images[4]]


def test_send_refuses_what_cannot_be(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    assert run("send", scan, "-o", output, "--port", "99999")[0] == 2
    status, _, err = run("send", scan, "-o", output, "--host", "..")
    assert status == 1
    assert "no server answers at .." in err
    status, _, err = run("send", scan, "-o", output, "-C", tmp_path / "no.xml")
    assert status == 1
    assert "no.xml" in err
    status, _, err = run("send", tmp_path / "no.h5", "-o", output)
    assert status == 1
    assert "no.h5" in err
    source = Path(shutil.copy(scan, tmp_path))
    status, _, err = run("send", source, "-o", source, "--overwrite")
    assert status == 2
    assert source.read_bytes() == scan.read_bytes()


# --- train ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_draws_samples_trains_in_parts_and_exports(run, tmp_path, monkeypatch):
    monkeypatch.setattr("recon_core.training.survey._TOLERANCE", 100.0)  # two steps teach nothing
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "steps: 2\nvalidate_every: 2\nlines: [24, 24]\nframes: [8, 8]\nwidth: 8\nsurvey: 2\n"
        "network: {cascades: 1, channels: 4}\n"
    )
    sheet, folder, weights = tmp_path / "samples.png", tmp_path / "training", tmp_path / "weights"
    status, out, _ = run("train", "crunet_mr", "--samples", sheet)
    assert (status, sheet.read_bytes()[:4]) == (0, b"\x89PNG")
    assert "samples in" in out
    arguments = ("train", "crunet_mr", "--folder", folder, "--config", plan, "--weights-folder", weights)
    status, out, _ = run(*arguments, "--minutes", "0")
    assert status == 0
    assert "to be continued by the same command" in out
    status, out, _ = run(*arguments)
    assert status == 0
    assert "weights=crunet_mr-small" in out
    assert (weights / "crunet_mr-small.safetensors").is_file()
    assert (folder / "curves.html").is_file()


def test_train_needs_somewhere_to_keep_its_state(run):
    status, _, err = run("train", "crunet_mr")
    assert status == 2
    assert "--folder" in err
