"""Kinds of scans by name: each has the habits that it stands for, and the chain copes with them."""

import json

import numpy as np
import pytest

from gadgets.commands.main import main
from gadgets.files.raw import open_scan, write_scan
from gadgets.inspection.raw_file import inspect
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.simulation.presets import PRESETS, plan_like
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Readouts
from recon_core.errors import SettingsError

SMALL = {"matrix_x": 48, "matrix_y": 40, "coils": 3}


def small(name, **changes):
    acs = {} if PRESETS[name].fields.get("acs_lines") == 0 else {"acs_lines": 8}
    return plan_like(name, {**SMALL, **acs, **changes})


def look_at(name, folder, **changes):
    """Headers of the image readouts of a small scan of a kind, its header, and the report on it."""
    scan, path = simulate(small(name, **changes)), folder / "scan.h5"
    write_scan(path, scan.header, scan.items())
    report = inspect(path, Settings())
    with open_scan(path) as raw:
        headers = np.concatenate([item.headers for item in raw.items if isinstance(item, Readouts)])
    return headers, parse_header(scan.header), report, json.loads(report.json())


@pytest.mark.parametrize("name", PRESETS)
def test_every_kind_can_be_reconstructed(name, tmp_path):
    _, _, report, document = look_at(name, tmp_path)
    plan = small(name)
    assert report.good
    facts = next(value for title, value in document.items() if title.startswith("Reconstruction"))
    assert facts["images"] == {"images": plan.frames * plan.slices, "slices": plan.slices}
    assert not facts["whitening"]


def test_explicit_fields_win():
    assert plan_like("ocmr", {}).averages == 2
    assert plan_like("ocmr", {"averages": 1}).averages == 1
    assert plan_like("", {"frames": 7}) == ScanPlan(frames=7)
    with pytest.raises(SettingsError, match="there is no kind of scan 'mine'; there are ocmr"):
        plan_like("mine", {})


def test_ocmr_has_the_numbers_of_the_data_set():
    plan = plan_like("ocmr", {})
    assert (plan.encoded_x, plan.encoded_x - plan.dropped_samples, plan.averages) == (512, 352, 2)
    plan = plan_like("ocmr-rt", {})
    assert (plan.encoded_x, plan.encoded_y, plan.matrix_y, plan.measured_lines) == (352, 134, 132, 126)
    plan = plan_like("ocmr-rt", {"frames": 2, "slices": 1, "coils": 1})
    assert simulate(plan).truth.mask[0].sum(axis=1).tolist() == [18] * 2


def test_real_time_counts_phases_in_alternating_order(tmp_path):
    headers, header, _, document = look_at("ocmr-rt", tmp_path, frames=6)
    assert header.user_parameters["PilotTone"] == "1"
    line, frame = headers["idx"]["kspace_encode_step_1"].astype(int), headers["idx"]["phase"]
    assert headers["idx"]["repetition"].max() == 0
    for number in range(6):
        steps = np.diff(line[(frame == number) & (headers["idx"]["slice"] == 0)])
        assert (steps < 0).all() if number % 2 else (steps > 0).all()
    (encoding,) = header.encodings
    assert encoding.limits["kspace_encoding_step_1"].maximum + 1 < encoding.encoded.matrix[1]
    assert document["Slices"]["complete"][0]["pattern"] == "random"


def test_the_centre_of_the_header_is_naive(tmp_path):
    headers, header, report, _ = look_at("siemens-partial-fourier", tmp_path)
    assert header.encodings[0].limits["kspace_encoding_step_1"].center == 20
    assert set(headers["idx"]["user"][:, 5]) == {10}
    assert "the readouts are believed" in report.text()


def test_stamps_without_gating_only_rise(tmp_path):
    headers, _, report, document = look_at("siemens-ungated", tmp_path)
    since = headers["physiology_time_stamp"][:, 0].astype(int)
    assert since[0] == 4304495
    assert (np.diff(since) >= 0).all()
    assert document["Time"]["gating"][0]["kind"] == "no gating"
    assert "no gating was on" in report.text()


def test_midnight_is_passed(tmp_path):
    *_, document = look_at("midnight", tmp_path)
    assert document["Time"]["acquisition stamps"]["wraps"] == 1
    assert document["Time"]["gating"][0]["kind"] == "retrospective"


def test_lost_readouts_and_repeated_beats_are_reported(tmp_path):
    headers, _, report, _ = look_at("lost-start", tmp_path)
    assert headers["scan_counter"][0] == 8
    assert "the scan counter begins at 8" in report.text()
    *_, document = look_at("siemens-retro-ectopic", tmp_path)
    assert document["Slices"]["measured again"] > 0


def test_slices_that_end_early(tmp_path):
    headers, _, report, document = look_at("ocmr-rt", tmp_path, frames=6, uneven_frames=2)
    last = [headers["idx"]["phase"][headers["idx"]["slice"] == number].max() for number in range(3)]
    assert last == [5, 4, 3]
    assert [one["frames"] for one in document["Slices"]["complete"]] == [6, 5, 4]
    assert report.good
    assert "slice 1 has 5 frames, the header has room for 6" in report.text()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"phase_counter": True}, "phase_counter is for real-time scans"),
        ({"alternating_order": True, "segments": 5}, "alternating_order is for scans without segments"),
        ({"uneven_frames": 24}, "uneven_frames must leave one"),
        ({"uneven_frames": 2, "gating": "retrospective"}, "it has no uneven_frames"),
    ],
)
def test_contradictions_are_refused(changes, text):
    with pytest.raises(SettingsError, match=text):
        ScanPlan(**changes)


def test_a_scan_that_would_lose_all_is_refused():
    with pytest.raises(SettingsError, match="must leave some"):
        simulate(ScanPlan(**SMALL, frames=2, acs_lines=8, lost_readouts=5000))


def test_command(tmp_path, capsys):
    path = tmp_path / "scan.h5"
    options = ["--matrix-x", "48", "--matrix-y", "40", "--coils", "3", "--segments", "8", "--frames", "4"]
    assert main(["simulate", str(path), "--like", "ocmr", *options]) == 0
    with open_scan(path) as raw:
        assert parse_header(raw.header).vendor == "SIEMENS"
        headers = np.concatenate([item.headers for item in raw.items])
    assert headers["idx"]["average"].max() == 1
    assert headers["idx"]["phase"].max() == 3
    assert (headers["number_of_samples"] == 66).all()
