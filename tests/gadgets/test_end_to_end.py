"""Whole scans through every door: all give the same images to the last bit, and these show the truth.

A case is a file in tests/cases: the scan (``plan``, fields of ScanPlan, with ``like`` a known kind that they change, or
``data``, a file among the shared ones with its ``reference``), the pipeline and settings on it, how many images come,
and the largest normalised root mean square error of their magnitudes, one scale for the whole series. ``slow`` keeps
the case's own process, which takes seconds to start, out of the quick tests; ``slow: all`` keeps out the whole case.
``requires: cuda`` needs a GPU. ``weights: tiny`` gives the network small untrained weights; its error then only says
that the images are what they were.
"""

import shutil
import subprocess
import threading
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
import ismrmrd
import numpy as np
import pytest
import yaml

from gadgets.connection.client import send
from gadgets.connection.server import Server, SharedEngine
from gadgets.files.images import read_images
from gadgets.files.raw import open_scan
from gadgets.replay import replay
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings, apply
from gadgets.simulation import ScanPlan, simulate, write_simulation
from gadgets.simulation.presets import plan_like
from gadgets.wire.messages import ConfigFile, ConfigText, Header, Readouts
from gadgets.wire.writer import Writer
from recon_core.metrics.measures import best_scale, nrmse
from tests.helpers.gadgetron_parent import Gadgetron
from tests.helpers.networks import write_tiny_weights
from tests.helpers.paths import SHARED, needs

CASES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in Path(__file__).parents[1].glob("cases/*.yml")
}
DATA = SHARED / "data"
DOORS = ("client", "connect", "execute")
# What differs between doors is the stream, not the method: these cases have every kind of message, order and image that
# the others have. The others go through the doors with the slow tests, and other networks altogether.
AT_EVERY_DOOR = {
    "atlf_net",
    "complex_output",
    "crunet_mr",
    "kt_sense_interleaved_r4",
    "odd_sizes",
    "partial_fourier_pocs",
    "realtime_kt_sense",
    "retrospective_ecg",
    "semi_real_mini",
    "two_slices_segmented",
}


def case_parameters(*, door=""):
    for name, case in sorted(CASES.items()):
        slow = case.get("slow", False)
        rare = name not in AT_EVERY_DOOR and (door or case.get("weights") == "tiny")
        marks = [pytest.mark.slow] if rare or slow == "all" or (slow and door == "execute") else []
        if case.get("requires") == "cuda":
            marks.append(pytest.mark.cuda)
        if "data" in case:
            marks.append(needs(DATA / case["data"]))
        yield pytest.param(*([name, door] if door else [name]), marks=marks, id=f"{name}-{door}" if door else name)


@pytest.fixture(scope="module", autouse=True)
def _tiny_weights(tmp_path_factory):
    """Weights for the networks of the cases, in this process and in those that it starts."""
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_weights(folder, *(case["pipeline"] for case in CASES.values() if case.get("weights") == "tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CINESTREAM_WEIGHTS", str(folder))
        yield


@pytest.fixture(scope="module")
def server():
    running = Server(port=0)
    thread = threading.Thread(target=running.serve)
    thread.start()
    yield running
    running.stop(grace_seconds=0.0)
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    """Raw file, truth, and the images and waveforms that its replay gives, made once for every case."""
    engine = SharedEngine()

    @lru_cache
    def made(name):
        case, folder = CASES[name], tmp_path_factory.mktemp(name)
        if "data" in case:
            source, truth = DATA / case["data"], np.load(DATA / case["reference"])["reference"]
        else:
            source = folder / "scan.h5"
            truth = np.load(write_simulation(plan_like(case.get("like", ""), case["plan"]), source))["image"]
        settings = find_pipeline(case["pipeline"]).settings
        _, summary = replay(source, folder / "images.h5", apply(settings, case.get("settings", {})), engine)
        assert summary.problems.damage == []
        (images,) = read_images(folder / "images.h5").values()
        return source, truth, images

    return made


def pipeline_text(case):
    """The packaged pipeline with the case's settings in its <configuration>."""
    root = ET.fromstring(find_pipeline(case["pipeline"]).text)
    node = root.find("stream/external/configuration")
    for name, value in case.get("settings", {}).items():
        ET.SubElement(node, name).text = str(value)
    return ET.tostring(root, encoding="unicode")


def through(door, case, source, server, folder):
    if door == "client":
        result = send(source, folder / "images.h5", ConfigText(pipeline_text(case)), server.address)
        assert result.good
        assert result.texts == []
        (images,) = read_images(folder / "images.h5").values()
        return images
    with open_scan(source) as scan:
        connect = server.address if door == "connect" else None
        outcome = Gadgetron(pipeline_text(case), connect=connect).run(scan.header, scan.items)
    assert outcome.errors == []
    assert outcome.closed
    assert not outcome.status
    return outcome.images


def assert_same(images, expected):
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        assert image.attributes == wanted.attributes
        assert image.header.tobytes() == wanted.header.tobytes()
        assert image.data.dtype == wanted.data.dtype
        assert image.data.tobytes() == wanted.data.tobytes()


@pytest.mark.parametrize("name", list(case_parameters()))
def test_the_images_show_the_truth(name, from_file):
    case = CASES[name]
    _, truth, images = from_file(name)
    assert len(images) == case["images"] == truth.shape[0] * truth.shape[1]
    shown = np.full(truth.shape, np.nan, images[0].data.dtype)
    for image in images:
        shown[image.header["slice"], max(image.header["phase"], image.header["repetition"])] = image.data[0, 0]
    shown, truth = shown.reshape(-1, *truth.shape[2:]), truth.reshape(-1, *truth.shape[2:])
    error = nrmse(best_scale(shown, truth) * shown, truth)
    assert error <= case["nrmse"]


@pytest.mark.parametrize(("name", "door"), [one for door in DOORS for one in case_parameters(door=door)])
def test_every_door_gives_the_same_images(name, door, from_file, server, tmp_path):
    source, _, images = from_file(name)
    assert_same(through(door, CASES[name], source, server, tmp_path), images)


@pytest.mark.parametrize("door", ["connect", pytest.param("execute", marks=pytest.mark.slow)])
def test_a_slice_leaves_while_the_scan_goes_on(door, server):
    """Of two interleaved slices the first is complete one readout before the end: its images need not wait for that."""
    case = CASES["two_slices_segmented"]
    scan = simulate(ScanPlan(**case["plan"]))
    gadgetron = Gadgetron(pipeline_text(case), connect=server.address if door == "connect" else None)
    early = []

    def items():
        *front, last = scan.items()
        assert isinstance(last, Readouts)
        assert last.headers["idx"]["slice"][-2:].tolist() == [0, 1]
        yield from front
        yield last[:-1]
        early.append(gadgetron.wait_for("images", case["images"] // 2))
        yield last[-1:]

    outcome = gadgetron.run(scan.header, items())
    assert early == [True]
    assert outcome.errors == []
    assert [int(image.header["slice"]) for image in outcome.images] == [0] * 6 + [1] * 6


# --- the stock tools --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "accelerated"])
def shepp_logan(request, tmp_path_factory):
    """A file of ISMRMRD's own generator: 64 x 64, 4 coils, a noise scan; the header says the tool's schema version."""
    tool = shutil.which("ismrmrd_generate_cartesian_shepp_logan")
    if tool is None:
        pytest.skip("ismrmrd_generate_cartesian_shepp_logan (Debian: ismrmrd-tools) is not installed")
    path = tmp_path_factory.mktemp(request.param) / "phantom.h5"
    options = ["-r", "2"] if request.param == "full" else ["-r", "2", "-a", "2", "-w", "16"]
    command = [tool, "-m", "64", "-c", "4", "-n", "0.02", "-C", *options, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return request.param, path


def test_the_phantom_of_the_stock_generator(shepp_logan, server, tmp_path):
    kind, path = shepp_logan
    settings = Settings.of(method="cg_sense")
    _, summary = replay(path, tmp_path / "replayed.h5", settings, SharedEngine())
    assert summary.problems.damage == []
    replayed = read_images(tmp_path / "replayed.h5")[1]
    result = send(path, tmp_path / "sent.h5", ConfigFile("cg_sense.xml"), server.address)
    assert result.good
    assert_same(read_images(tmp_path / "sent.h5")[1], replayed)
    with h5py.File(path) as file:
        phantom, maps = (file[f"dataset/{name}"][0] for name in ("phantom", "csm"))
        phantom, maps = (values["real"] + 1j * values["imag"] for values in (phantom, maps))
    truth = np.abs(phantom) * np.sqrt((np.abs(maps) ** 2).sum(0))
    shown = np.stack([image.data[0, 0] for image in replayed])
    truth = np.broadcast_to(truth, shown.shape)
    assert nrmse(best_scale(shown, truth) * shown, truth) < {"full": 0.08, "accelerated": 0.16}[kind]


def test_the_schema_version_of_the_stock_generator_is_not_sent(shepp_logan, tmp_path, server, monkeypatch):
    """A Gadgetron of another version would refuse the header only after its external nodes were started, and hang."""
    _, path = shepp_logan
    with open_scan(path) as scan:
        assert "<version>8</version>" in scan.header
    sent = []
    original = Writer.send
    monkeypatch.setattr(Writer, "send", lambda writer, message: (sent.append(message), original(writer, message))[1])
    assert send(path, tmp_path / "sent.h5", ConfigFile("zero_filled"), server.address).good
    (header,) = [message for message in sent if isinstance(message, Header)]
    assert "<version>" not in header.text
    assert ismrmrd.xsd.CreateFromDocument(header.text).encoding[0].encodedSpace.matrixSize.x == 128
