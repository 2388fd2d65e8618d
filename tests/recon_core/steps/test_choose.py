"""What `method=auto` chooses, by what is known of the methods and of the slice."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon_core.data import CineSlice, HybridSlice
from recon_core.errors import ModelError
from recon_core.inference.method import NetworkMethod
from recon_core.options import ReconOptions
from recon_core.points.slice import PointSlice
from recon_core.steps.choose import WITHOUT_WEIGHTS, candidates, choose, known_gain
from recon_core.steps.work import Work
from recon_core.weights.manifest import WeightsEntry


def entry(method, gain, name="", reference="kt_sense", **facts):
    metrics = {} if gain is None else {"survey": {"median_gain": gain, "scans": 40}}
    name = name or f"{method}-lab"
    facts = {"method": method, "reference": reference, "metrics": metrics, **facts}
    return WeightsEntry(name=name, file=Path("weights"), sha256="0" * 64, **facts)


@pytest.fixture
def weights(monkeypatch):
    """A function that says which weights there are."""

    def put(*entries):
        found = {one.name: one for one in entries}
        monkeypatch.setattr("recon_core.steps.choose.list_weights", lambda: found)

    put()
    return put


class Network(NetworkMethod):
    """A network whose training the scan is unlike to, or not, and that may start from the image of another one."""

    first_network = ""

    def __init__(self, unlike, first_network=""):
        self.unlike = unlike
        self.first_network = first_network

    def unlike_training(self, data):
        return self.unlike


def work(options, unlike=None, broken=(), ct=None):
    """A slice of two frames, four coils, 6 x 5, and methods that are not run."""
    unlike = unlike or {}

    def build(name, _):
        if name in broken:
            raise ModelError(f"{name} is damaged")
        return Network(unlike.get(name, "")) if name not in WITHOUT_WEIGHTS else lambda data: data

    kspace, mask = np.zeros((2, 4, 6, 5), np.complex64), np.ones((2, 6), bool)
    hybrid, maps = torch.tensor(kspace), torch.zeros(4, 6, 5, dtype=torch.complex64)
    data = HybridSlice(hybrid, torch.tensor(mask), maps, hybrid[0], torch.ones(6, dtype=torch.bool), ct=ct)
    return Work(CineSlice(kspace, mask), data, options, build)


AUTO = ReconOptions.of(method="auto")


def chosen(*arguments, **more):
    """Method, weights and note of what is chosen."""
    result = choose(work(*arguments, **more))
    (note,) = result.data.notes
    return result.options.method, result.options.network.weights, note


def test_the_network_that_is_known_to_add_most_is_chosen(weights):
    weights(entry("crnn_mri", 0.3), entry("crunet_mr", 0.8), entry("cinenet", 0.5))
    expected = "auto: crunet_mr (+0.8 dB over kt_sense on scans of its survey)"
    assert chosen(AUTO) == ("crunet_mr", "crunet_mr-lab", expected)
    ranked = [one.name for one in candidates(AUTO)]
    assert ranked == ["crunet_mr", "cinenet", "crnn_mri", *WITHOUT_WEIGHTS]


@pytest.mark.parametrize("one", [
    entry("crunet_mr", None), entry("crunet_mr", 2.8, reference="cg_sense"), entry("crunet_mr", -0.1),
    entry("crunet_mr", 0.0), entry("crunet_mr", None, metrics={"survey": 3.0}),
])  # fmt: skip
def test_weights_without_a_known_gain_over_kt_sense_are_no_candidates(weights, one):
    weights(one)
    assert known_gain(one) == 0
    assert chosen(AUTO) == ("kt_sense", "", "auto: kt_sense (no weights are known to add to kt_sense)")


def test_weights_that_do_not_exist_are_named_with_those_that_do(weights):
    weights(entry("crunet_mr", 0.8))
    method, _, note = chosen(ReconOptions.of(method="auto", weights="crunet_mr-lap"))
    assert method == "kt_sense"
    assert "(there are no weights 'crunet_mr-lap'; did you mean crunet_mr-lab? (there are crunet_mr-lab)" in note


def test_a_network_that_is_not_for_the_scan_is_passed_over_and_the_note_says_why(weights):
    weights(entry("crunet_mr", 0.8), entry("crnn_mri", 0.3))
    found = chosen(AUTO, unlike={"crunet_mr": "acceleration 2"})
    note = "auto: crnn_mri (+0.3 dB over kt_sense on scans of its survey; crunet_mr: acceleration 2)"
    assert found == ("crnn_mri", "crnn_mri-lab", note)
    found = chosen(AUTO, broken={"crunet_mr", "crnn_mri"})
    note = "auto: kt_sense (crunet_mr: crunet_mr is damaged; crnn_mri: crnn_mri is damaged)"
    assert found == ("kt_sense", "", note)


def test_a_network_that_starts_from_one_that_is_not_for_the_scan_is_passed_over(weights):
    weights(entry("crunet_mr", 0.8), entry("crnn_mri", 0.3))
    for points, expected in ((None, "crunet_mr"), (torch.ones(2, 6, 5, dtype=torch.bool), "crnn_mri")):
        slice_ = work(AUTO)
        if points is not None:
            fields = {one.name: getattr(slice_.data, one.name) for one in dataclasses.fields(HybridSlice)}
            slice_ = dataclasses.replace(slice_, data=PointSlice(**fields, points=points))
        slice_ = dataclasses.replace(slice_, build=lambda name, _: Network("", "promptmr" * (name == "crunet_mr")))
        result = choose(slice_)
        assert result.options.method == expected
        refused = "crunet_mr: it starts from the image of promptmr, and promptmr needs whole lines"
        assert (refused in result.data.notes[0]) == (points is not None)


def test_the_reasons_do_not_fill_the_comment(weights):
    names = ("crunet_mr", "crnn_mri", "unet3d_mr", "cinenet", "cst_net")
    weights(*(entry(name, 0.5) for name in names))
    _, _, note = chosen(AUTO, unlike=dict.fromkeys(names, "2 frames"))
    assert note == "auto: kt_sense (crunet_mr: 2 frames; crnn_mri: 2 frames; and 3 more)"


def test_a_ct_is_asked_of_nobody(weights):
    weights(entry("atlf_net", 0.8))
    assert chosen(AUTO)[2] == "auto: kt_sense (atlf_net: there is no CT)"
    assert chosen(AUTO, ct=torch.zeros(6, 5))[0] == "atlf_net"


def test_named_weights_are_the_only_ones_considered(weights):
    weights(entry("crunet_mr", 0.8), entry("crunet_mr", 0.2, name="mine"), entry("crnn_mri", 0.5))
    assert chosen(ReconOptions.of(method="auto", weights="mine"))[:2] == ("crunet_mr", "mine")


def test_a_method_is_not_its_own_fallback(weights):
    weights(entry("crunet_mr", 0.8))
    found = {one.name: one.options.fallback for one in candidates(AUTO)}
    assert found == {
        "crunet_mr": "kt_sense", "kt_sense": "cg_sense", "cg_sense": "kt_sense", "zero_filled": "kt_sense"
    }  # fmt: skip
    last = candidates(ReconOptions.of(method="auto", fallback="zero_filled"))[-1].options
    assert (last.method, last.fallback) == ("zero_filled", "zero_filled")
    assert {one.options.fallback for one in candidates(ReconOptions.of(method="auto", fallback="none"))} == {"none"}


# --- with a deadline --------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """A pace that is known for every method."""

    table: dict

    def seconds(self, job):
        return self.table[job.method]


TABLE = {"crunet_mr": 8.0, "crnn_mri": 5.0, "kt_sense": 2.0, "cg_sense": 1.0, "zero_filled": 0.1}
WEIGHTS = {
    one.name: one for one in (entry("crunet_mr", 0.8, start="cg_sense"), entry("crnn_mri", 0.3, start="kt_sense"))
}
RANKED = ["crunet_mr", "crnn_mri", *WITHOUT_WEIGHTS]


def in_time(left, table=TABLE, options=AUTO, **more):
    """What is chosen with so many seconds left, with the note."""
    until = math.inf if left is None else 100.0 + left
    slice_ = dataclasses.replace(work(options, **more), pace=Known(table), until=until)
    with (
        patch("recon_core.steps.choose.time.monotonic", lambda: 100.0),
        patch("recon_core.steps.choose.list_weights", lambda: WEIGHTS),
    ):
        result = choose(slice_)
    return result.options.method, result.data.notes[0]


GAINS = {
    "crunet_mr": "+0.8 dB over kt_sense on scans of its survey; ",
    "crnn_mri": "+0.3 dB over kt_sense on scans of its survey; ",
}


@pytest.mark.parametrize(("left", "method", "expected"), [
    (60, "crunet_mr", "about 10 s of the 60 s left"),
    (9, "crnn_mri", "about 5 s of the 9 s left; crunet_mr: would take about 10 s"),
    (3, "kt_sense", "about 2 s of the 3 s left; crunet_mr: would take about 10 s; crnn_mri: would take about 5 s"),
    (1.5, "cg_sense",
     "about 1 s of the 1.5 s left; crunet_mr: would take about 10 s; crnn_mri: would take about 5 s; and 1 more"),
    (-4, "zero_filled", "about 0.1 s of the 0 s left; no other is faster"),
])  # fmt: skip
def test_the_best_that_is_in_time_is_chosen(left, method, expected):
    """A network takes the time of what it is compared with too, unless it starts from that; a quarter is in reserve."""
    assert in_time(left) == (method, f"auto: {method} ({GAINS.get(method, '')}{expected})")


times = st.fixed_dictionaries({name: st.floats(0.01, 50) for name in RANKED})


@given(times, st.floats(0, 100), st.floats(0, 100))
def test_more_time_is_never_worse(table, one, other):
    less, more = (RANKED.index(in_time(left, table)[0]) for left in sorted((one, other)))
    assert more <= less


@given(times)
def test_without_time_the_fastest_and_without_a_deadline_the_best(table):
    assert in_time(0, table)[0] == min(WITHOUT_WEIGHTS, key=table.get)
    assert in_time(None, table)[0] == "crunet_mr"
    assert in_time(1000, table)[0] == "crunet_mr"


def test_what_is_made_besides_takes_its_time():
    assert in_time(3)[0] == "kt_sense"
    assert in_time(3, options=ReconOptions.of(method="auto", extra_series="difference"))[0] == "zero_filled"
    slow = {**TABLE, "zero_filled": 1.0}
    assert in_time(3, slow, ReconOptions.of(method="auto", extra_series="zero_filled"))[0] == "cg_sense"


def test_a_network_that_has_time_and_is_not_for_the_scan_is_still_passed_over():
    method, note = in_time(60, unlike={"crunet_mr": "2 frames"})
    assert method == "crnn_mri"
    assert "crunet_mr: 2 frames" in note
