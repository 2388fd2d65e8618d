"""`method=auto` through file, socket and Python: the deadline is kept, and the images say what was chosen."""

import json
import re
import warnings

import ismrmrd
import numpy as np
import pytest

import recon_core
from gadgets import reconstruct_file
from gadgets.files.images import read_images
from gadgets.replay import replay
from gadgets.settings import openrecon
from gadgets.settings.fire import parse_json_parameters
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, write_simulation
from gadgets.wire.messages import Close, ConfigText, Header
from recon_core.engine import Engine
from recon_core.simulate.kspace import simulate_cine
from recon_core.steps.pace import Pace
from tests.helpers.peers import SLICES, images_of, scan, serving, talk

#: Seconds that a slice is expected to take.
TABLE = {"kt_sense": 1000.0, "cg_sense": 100.0, "zero_filled": 1.0}
#: Deadlines, and what is chosen with them for each of two slices that are complete together.
CHOICES = [(0, "kt_sense"), (10_000, "kt_sense"), (1000, "cg_sense"), (1, "zero_filled")]


@pytest.fixture
def _slow(monkeypatch):
    """Methods seem to take minutes, and no weights are known to add anything."""
    monkeypatch.setattr(Pace, "seconds", lambda _, job: TABLE[job.method])
    monkeypatch.setattr("recon_core.steps.choose.known_gain", lambda _: 0.0)


@pytest.mark.usefixtures("_slow")
@pytest.mark.parametrize(("deadline", "method"), CHOICES)
def test_from_a_file(tmp_path, deadline, method):
    plan = ScanPlan(matrix_x=48, matrix_y=40, frames=3, slices=2, coils=3, acs_lines=10, slice_order="interleaved")
    write_simulation(plan, tmp_path / "scan.h5")
    settings = Settings.of(method="auto", deadline=deadline, device="cpu")
    replay(tmp_path / "scan.h5", tmp_path / "images.h5", settings, lambda: Engine("cpu"))
    metas = [ismrmrd.Meta.deserialize(one.attributes) for one in read_images(tmp_path / "images.h5")[1]]
    assert [meta["cinestream_method"] for meta in metas] == [method] * 6
    assert all(f"; auto: {method} (no weights are known" in meta["ImageComments"] for meta in metas)
    left = [float(seconds) for seconds in re.findall(r"of the (\S+) s left", metas[0]["ImageComments"])]
    assert len(left) == (deadline > 0)
    assert all(seconds <= deadline / 2 for seconds in left)  # another slice is there, and has as much


@pytest.mark.usefixtures("_slow")
@pytest.mark.parametrize(("deadline", "method"), CHOICES)
def test_through_a_socket(deadline, method):
    text = find_pipeline("auto").text.replace("</method>", f"</method><deadline>{deadline}</deadline>")
    header, items = scan("interleaved")
    with serving(Engine("cpu")) as server:
        answer = talk(server, ConfigText(text), Header(header), *items, Close())
    assert answer.complaints("client") == []
    expected = images_of(header, items, Engine("cpu"), method=method)
    assert len(answer.images) == len(expected) == 4 * SLICES
    for image, wanted in zip(answer.images, expected, strict=True):
        np.testing.assert_array_equal(image.data, wanted.data)
        assert ismrmrd.Meta.deserialize(image.attributes)["cinestream_method"] == method


@pytest.mark.usefixtures("_slow")
@pytest.mark.parametrize(("deadline", "method"), CHOICES)
def test_of_arrays(deadline, method):
    made = simulate_cine(frames=4, matrix=(24, 20), coils=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was chosen is what was asked for
        result = recon_core.reconstruct(made.kspace, "auto", deadline=deadline, device="cpu")
    assert result.method == method
    assert [note.partition(" (")[0] for note in result.notes if note.startswith("auto")] == [f"auto: {method}"]


@pytest.mark.usefixtures("_slow")
def test_of_arrays_of_a_stream_or_file(tmp_path):
    write_simulation(ScanPlan(matrix_x=48, matrix_y=40, frames=3, coils=3), tmp_path / "scan.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (cine,) = reconstruct_file(tmp_path / "scan.h5", "auto", deadline=500, device="cpu")
    assert cine.method == "cg_sense"


def test_scanners_may_set_the_deadline():
    (parameter,) = [one for one in openrecon.make_label()["parameters"] if one["id"] == "deadline"]
    assert (parameter["type"], parameter["default"], parameter["minimum"]) == ("double", 0.0, 0.0)
    found = parse_json_parameters(json.dumps({"parameters": {"config": "auto", "deadline": "20"}}))
    assert found.pipeline == "auto"
    assert Settings.of(**found.settings).compute.deadline == 20
