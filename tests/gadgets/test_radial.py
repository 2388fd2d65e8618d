"""Radial scans from the readouts to the images: through the chain, a file and a server."""

import dataclasses
import functools
import itertools
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.files.raw import open_scan, write_scan
from gadgets.reports.gallery import Gallery
from gadgets.reports.record import ReportCollector
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, Header, Image, Readouts
from recon_core.engine import Engine
from recon_core.errors import DataError, HeaderError, SettingsError
from tests.helpers.peers import serving, talk

pytest.importorskip("finufft", reason="no wheel of finufft for this platform")

PLAN = {
    "trajectory": "golden",
    "spokes": 13,
    "frames": 6,
    "matrix_x": 48,
    "matrix_y": 40,
    "field_of_view_x": 360.0,
    "field_of_view_y": 300.0,
    "coils": 4,
    "snr": 60.0,
}


@functools.cache
def engine():
    return Engine("cpu")


def scan_of(**plan):
    scan = simulate(ScanPlan(**{**PLAN, **plan}))
    return scan, [*scan.items()]


def made(scan, items, method="zero_filled", **settings):
    chosen = Settings.of(method=method, fallback="none", **settings)
    chain = Chain(parse_header(scan.header), chosen, engine)
    return [item for item in chain(iter(items)) if isinstance(item, Image)], chain.summary.problems


def pixels(images):
    return np.stack([image.data[0, 0] for image in images])


def error(images, truth):
    found, truth = np.abs(pixels(images)), np.abs(truth)
    scale = (found * truth).sum() / np.square(found).sum()
    return float(np.linalg.norm(scale * found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("form", ["pixel", "fov", "weighted"])
def test_positions_come_through_a_file(form, tmp_path):
    scan, items = scan_of(trajectory="uniform", writes_trajectory=form)
    write_scan(tmp_path / "scan.h5", scan.header, items)
    with open_scan(tmp_path / "scan.h5") as file:
        stored = [*file.items]
    assert any(item.trajectory is not None for item in stored if isinstance(item, Readouts))
    (ours, _), (theirs, _) = made(scan, stored), made(scan, items)
    np.testing.assert_array_equal(pixels(ours), pixels(theirs))


@pytest.mark.parametrize("length", [0, -2, 2, None])
def test_a_file_with_a_trajectory_of_another_length(length, tmp_path):
    """None leaves it as it is; its dimensions are said to be none."""
    scan, items = scan_of()
    write_scan(tmp_path / "scan.h5", scan.header, items)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        rows = file["dataset/data"][:]
        for row in rows:
            if length is None:
                row["head"]["trajectory_dimensions"] = 0
            elif row["traj"].size:
                row["traj"] = np.resize(row["traj"], len(row["traj"]) + length if length else 0)
        file["dataset/data"][:] = rows
    with open_scan(tmp_path / "scan.h5") as file:
        stored = [*file.items]
    if length is None:
        np.testing.assert_array_equal(pixels(made(scan, stored)[0]), pixels(made(scan, items)[0]))
        return
    with pytest.raises(DataError, match="set trajectory to uniform, golden or tiny_golden"):
        made(scan, stored)
    assert len(made(scan, stored, trajectory="golden")[0]) == 6


def changed(items, change):
    """Change the trajectories of all readouts that have one; None takes them away."""
    return [
        dataclasses.replace(item, trajectory=change(item.trajectory.copy()))
        if isinstance(item, Readouts) and item.trajectory is not None
        else item
        for item in items
    ]


def test_a_golden_angle_scan_comes_near_the_truth():
    scan, items = scan_of()
    images, problems = made(scan, items, "kt_sense")
    assert len(images) == 6
    assert images[0].data.shape == (1, 1, 40, 48)
    np.testing.assert_allclose(images[0].header["field_of_view"], (360, 300, 8))
    np.testing.assert_allclose(images[0].header["position"], scan.plan.positions[0])
    assert [int(image.header["phase"]) for image in images] == [*range(6)]
    assert error(images, scan.truth.image[0]) < 0.15
    assert not problems.damage


@pytest.mark.parametrize("law", ["uniform", "golden", "tiny_golden"])
@pytest.mark.parametrize("form", ["fov", "weighted", "none"])
def test_every_form_of_the_trajectory_gives_the_same_images(law, form):
    scan, items = scan_of(trajectory=law)
    expected = pixels(made(scan, items)[0])
    other, theirs = scan_of(trajectory=law, writes_trajectory=form)
    settings = {"trajectory": law} if form == "none" else {}
    found = pixels(made(other, theirs, **settings)[0])
    limit = 1e-3
    if form == "weighted":  # the centre has other weights, and the ramp is not the area of golden spokes
        limit = 0.02 if law == "uniform" else 0.3
    assert np.linalg.norm(found - expected) < limit * np.linalg.norm(expected)


def test_interleaved_slices_come_apart():
    scan, items = scan_of(slices=2, slice_order="interleaved", writes_trajectory="none")
    images, _ = made(scan, items)
    assert sorted({int(image.header["slice"]) for image in images}) == [0, 1]
    apart, of_one = scan_of(slices=2, writes_trajectory="none")
    expected, _ = made(apart, of_one)
    for number in (0, 1):
        one, other = (pixels([i for i in some if i.header["slice"] == number]) for some in (images, expected))
        one = one * (one * other).sum() / np.square(one).sum()
        assert np.linalg.norm(one - other) < 0.25 * np.linalg.norm(other)  # noise and heart differ


def test_consecutive_spokes_make_frames():
    scan, items = scan_of(time_axis="repetition", continuous=True, frames=6)
    images, _ = made(scan, items, lines_per_frame=13)
    assert [int(image.header["repetition"]) for image in images] == [*range(6)]
    counted, theirs = scan_of(time_axis="repetition", frames=6)
    np.testing.assert_allclose(pixels(images), pixels(made(counted, theirs)[0]), rtol=1e-3, atol=0.5)
    more, problems = made(scan, items, lines_per_frame=20)
    assert len(more) == 4  # 78 spokes: three frames and 18 of 20
    assert not problems.damage
    assert len(made(scan, items, lines_per_frame=30)[0]) == 2  # 18 of 30 are too few


def test_angles_of_the_settings():
    scan, items = scan_of(trajectory="uniform")
    none, theirs = scan_of(trajectory="uniform", writes_trajectory="none")
    expected = pixels(made(scan, items)[0])
    for settings in (
        {"trajectory": "golden", "angle_increment": 180 / 13, "angle_counter": "line"},
        {"trajectory": "golden", "angle_increment": -180 / 13, "angle_counter": "line", "rotation": "clockwise"},
        {"trajectory": "uniform", "first_angle": 360.0},
    ):
        found = pixels(made(none, theirs, **settings)[0])
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.max())
    turned = pixels(made(none, theirs, trajectory="uniform", first_angle=90.0)[0])
    assert np.linalg.norm(turned - expected) > 0.3 * np.linalg.norm(expected)


def test_file_and_server_give_the_images_of_the_chain(tmp_path):
    scan, items = scan_of()
    expected = pixels(made(scan, items)[0])
    write_scan(tmp_path / "scan.h5", scan.header, items)
    with open_scan(tmp_path / "scan.h5") as file:
        images, _ = made(scan, file.items)
    np.testing.assert_array_equal(pixels(images), expected)
    with serving(engine=engine()) as server:
        answer = talk(server, ConfigFile("zero_filled"), Header(scan.header), *items, Close())
    np.testing.assert_allclose(pixels(answer.images), expected, rtol=1e-5)


def test_compressed_coils():
    scan, items = scan_of()
    images, _ = made(scan, items, "kt_sense", virtual_coils=3)
    assert error(images, scan.truth.image[0]) < 0.2


def test_methods_that_need_a_grid_go_to_the_fallback():
    scan, items = scan_of()
    chain = Chain(parse_header(scan.header), Settings.of(method="grappa", fallback="zero_filled"), engine)
    images = [item for item in chain(iter(items)) if isinstance(item, Image)]
    assert len(images) == 6
    assert "grappa needs samples on a Cartesian grid" in images[0].attributes


def test_a_trajectory_that_is_announced_and_absent():
    scan, items = scan_of(trajectory="uniform", writes_trajectory="none")
    with pytest.raises(HeaderError, match="set trajectory to uniform, golden or tiny_golden"):
        made(scan, items)


def stack_of_stars(path):
    """Every third spoke in one of three planes."""
    height = (np.arange(len(path)) % 3 - 1) / 12
    return np.concatenate([path, np.broadcast_to(height[:, None, None], (*path.shape[:2], 1))], -1).astype(np.float32)


def koosh_ball(path):
    """Spokes that are tilted out of the plane, each by another angle."""
    tilt = np.linspace(0.1, 1.4, len(path))[:, None, None]
    radius = np.linalg.norm(path, axis=-1, keepdims=True) * np.sign(np.linspace(-1, 1, path.shape[1]))[:, None]
    return np.concatenate([path * np.cos(tilt), radius * np.sin(tilt)], -1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path * 7, "expected 0.5"),
        (lambda path: path * 0, "at the same place"),
        (lambda path: path * np.nan, "not finite"),
        (lambda path: path[..., :1], "1 dimensions"),
        (lambda path: np.concatenate([path, 0.2 - path[..., :1]], -1), "three dimensions"),
        (lambda path: np.concatenate([path, np.full_like(path[..., :1], np.nan)], -1), "not finite"),
        (stack_of_stars, "stack of stars"),
        (koosh_ball, "koosh ball"),
    ],
)
def test_trajectories_that_cannot_be_are_refused(change, words):
    scan, items = scan_of()
    chain = Chain(parse_header(scan.header), Settings.of(method="zero_filled"), engine)
    with pytest.raises(DataError, match="there is no image"):
        list(chain(iter(changed(items, change))))
    assert words in str(chain.summary.problems.damage[0])


def test_one_spoke_of_a_broken_trajectory_is_left_out():
    scan, items = scan_of()

    def broken(path):
        path[2] = np.nan
        return path

    images, problems = made(scan, changed(items, broken))
    assert len(images) == 6
    assert "not finite" in str(problems.damage[0])
    assert error(images, scan.truth.image[0]) < 0.8


def one_by_one(items):
    return [
        one
        for item in items
        for one in ([item[i : i + 1] for i in range(len(item))] if isinstance(item, Readouts) else [item])
    ]


def said(problems):
    return " ".join(map(str, problems))


@pytest.mark.parametrize("cut", [list, one_by_one])
def test_a_spoke_that_leaves_kspace_costs_no_other(cut):
    scan, items = scan_of()
    items = cut(items)

    def with_fifth(factor):
        spokes = itertools.count()

        def change(path):
            for spoke in path:
                spoke *= factor if next(spokes) == 5 else 1
            return path

        return changed(items, change)

    images, problems = made(scan, with_fifth(100))
    assert "goes beyond k-space" in said(problems.damage)
    without, _ = made(scan, with_fifth(np.nan))
    np.testing.assert_allclose(pixels(images), pixels(without), atol=1e-3 * np.abs(pixels(without)).max())


def test_density_weights_are_those_of_all_or_none():
    scan, items = scan_of()

    def weighted(first):
        seen = itertools.count()

        def change(path):
            if (next(seen) > 0) == first:
                return path
            return np.concatenate([path, np.linalg.norm(path, axis=-1, keepdims=True)], -1)

        return made(scan, changed(one_by_one(items), change))

    without, _ = weighted(first=False)  # none in the first readout
    np.testing.assert_allclose(pixels(without), pixels(made(scan, items)[0]), rtol=1e-3, atol=1e-3)
    _, problems = weighted(first=True)
    assert "no density weights, and that of the first readouts had some" in said(problems.damage)


def test_a_trajectory_that_ends_or_is_announced_only():
    scan, items = scan_of()
    spokes = itertools.count()
    ends = changed(one_by_one(items), lambda path: path if next(spokes) < 50 else None)
    _, problems = made(scan, ends)
    assert "there is no trajectory, and the readouts before had one" in said(problems.damage)
    announced = changed(items, lambda _: None)
    for item in announced:
        if isinstance(item, Readouts):
            item.headers["trajectory_dimensions"] = 2
    with pytest.raises(DataError, match="2 dimensions is announced, and there is none of that length"):
        made(scan, announced)
    assert len(made(scan, announced, trajectory="golden")[0]) == 6


def test_golden_angles_are_said_to_be_a_guess():
    scan, items = scan_of(writes_trajectory="none")
    images, problems = made(scan, items)
    assert "the golden angle is taken" in said(problems)
    assert "the golden angle is taken" in images[0].attributes


def test_a_trajectory_across_lines_under_a_cartesian_header_is_said():
    scan, items = scan_of()
    scan = SimpleNamespace(header=re.sub("<trajectory>.*?<", "<trajectory>cartesian<", scan.header))
    _, problems = made(scan, items)
    assert "has to say radial" in said(problems)
    along = changed(items, lambda path: path * np.array([1.0, 0.0], np.float32))
    assert "has to say radial" not in said(made(scan, along)[1])


@pytest.mark.parametrize("without_limits", [False, True])
def test_spokes_at_one_angle_are_refused(without_limits):
    scan, items = scan_of(trajectory="uniform", writes_trajectory="none")
    settings = {"trajectory": "uniform"} if without_limits else {"trajectory": "golden", "angle_increment": -180.0}
    limits = "<kspace_encoding_step_1>.*?</kspace_encoding_step_1>"
    header = re.sub(limits, "", scan.header, flags=re.DOTALL) if without_limits else scan.header
    with pytest.raises(HeaderError, match="all lie at one angle"):
        made(SimpleNamespace(header=header), items, **settings)
    assert len(made(SimpleNamespace(header=header), items, trajectory="uniform", lines_per_frame=13)[0]) == 6


def test_reversed_spokes_run_from_their_other_end():
    scan, items = scan_of(writes_trajectory="none")
    turned = []
    for item in items:
        if isinstance(item, Readouts) and item.data.shape[2] == 96:
            headers, data, every = item.headers.copy(), item.data.copy(), slice(0, None, 2)
            headers["flags"][every] |= AcquisitionFlag.REVERSE.bit
            headers["center_sample"][every] = 95 - headers["center_sample"][every]
            data[every] = data[every, :, ::-1]
            item = Readouts(headers, data)
        turned.append(item)
    np.testing.assert_allclose(pixels(made(scan, turned)[0]), pixels(made(scan, items)[0]), rtol=1e-3, atol=1e-3)


def test_a_slice_of_few_spokes_is_not_to_be_trusted():
    scan, items = scan_of()
    spokes = [item for item in one_by_one(items) if isinstance(item, Readouts) and item.trajectory is not None]
    for few, warned in ((spokes[:1], True), (spokes[::13], True), (spokes[::3], False)):
        images, problems = made(scan, few)
        assert ("not to be trusted" in said(problems)) == warned
        assert ("not to be trusted" in images[0].attributes) == warned


def test_a_third_column_without_meaning_is_ignored():
    scan, items = scan_of()
    flat = changed(items, lambda path: np.concatenate([path, np.zeros_like(path[..., :1])], -1))
    np.testing.assert_array_equal(pixels(made(scan, flat)[0]), pixels(made(scan, items)[0]))


@pytest.mark.parametrize(("mode", "counted"), [("sliding", True), ("sliding", False), ("fixed", False)])
def test_real_time_gives_every_frame_once_and_in_order(mode, counted):
    scan, items = scan_of(time_axis="repetition", continuous=not counted, frames=11)
    settings = {"realtime": mode, "realtime_window": 4, **({} if counted else {"lines_per_frame": 13})}
    images, problems = made(scan, items, "kt_sense", **settings)
    axis = "repetition" if counted else "phase"  # without a counter real time numbers phases
    assert [int(image.header[axis]) for image in images] == [*range(11)]
    assert not problems.damage
    assert error(images, scan.truth.image[0]) < 0.2


@pytest.fixture(scope="module")
def beating():
    plan = {"trajectory": "tiny_golden", "time_axis": "repetition", "continuous": True, "frames": 30}
    return scan_of(**plan, matrix_x=40, field_of_view_y=360.0)


def test_a_sliding_window_goes_on_from_the_frames_before(beating):
    scan, items = beating
    settings = {"realtime_window": 8, "lines_per_frame": 13, "iterations": 5}
    truth = scan.truth.image[0]
    sliding, problems = made(scan, items, "cg_sense", realtime="sliding", **settings)
    fixed, _ = made(scan, items, "cg_sense", realtime="fixed", **settings)
    assert not problems.damage
    np.testing.assert_array_equal(pixels(sliding[:8]), pixels(fixed[:8]))  # the first window
    assert error(sliding[8:], truth[8:]) < 0.97 * error(fixed[8:], truth[8:])


def test_coil_maps_of_short_windows_come_from_eight_frames(beating):
    scan, items = beating
    settings = {"realtime": "sliding", "lines_per_frame": 13, "iterations": 5}
    short, usual = (made(scan, items, "cg_sense", realtime_window=window, **settings)[0] for window in (4, 8))
    np.testing.assert_array_equal(pixels(short[:8]), pixels(usual[:8]))
    assert error(short[8:], scan.truth.image[0][8:]) < 1.1 * error(usual[8:], scan.truth.image[0][8:])


def test_a_preview_changes_nothing_of_a_series(beating):
    scan, items = beating
    settings = {"realtime": "sliding", "realtime_window": 4, "lines_per_frame": 13}
    alone, _ = made(scan, items[:220], "cg_sense", **settings)
    both, _ = made(scan, items[:220], "cg_sense", preview="zero_filled", **settings)
    series = alone[0].header["image_series_index"]
    np.testing.assert_array_equal(
        pixels(alone), pixels([image for image in both if image.header["image_series_index"] == series])
    )


#: Golden-angle spokes through some beats, without a frame counter.
BEATING = {
    "time_axis": "repetition",
    "continuous": True,
    "spokes": 10,
    "frames": 280,
    "matrix_x": 48,
    "matrix_y": 48,
    "field_of_view_y": 360.0,
    "heart_rate": 66.0,
    "rr_variability": 0.06,
}
GATED = 20


def gated(scan, items, source, method="kt_sense"):
    settings = {"gating": "retrospective", "gated_frames": GATED, "trigger_source": source, "rr_stretch": "cycle"}
    return made(scan, items, method, **settings)


def cycle(scan):
    """The truth at the moments of the gated frames."""
    away = np.abs((scan.truth.cardiac_phase[0] - np.arange(GATED)[:, None] / GATED + 0.5) % 1 - 0.5)
    return scan.truth.image[0][away.argmin(axis=1)]


def test_spokes_are_gated_by_the_ecg():
    scan, items = scan_of(**{**BEATING, "frames": 100, "matrix_x": 24, "matrix_y": 24, "stamps": "acquisition"})
    images, problems = gated(scan, items, "auto", "zero_filled")
    assert not problems.damage
    assert [int(image.header["phase"]) for image in images] == [*range(GATED)]
    assert "gated retrospectively by the ECG to 20 frames" in images[0].attributes


@pytest.mark.slow
def test_self_gating_comes_near_true_triggers():
    ratios, aligned = [], []
    for seed in range(3):
        scan, items = scan_of(**BEATING, seed=seed)
        truth = cycle(scan)
        (by_stamps, _), (by_centre, _) = (gated(scan, items, source) for source in ("stamps", "self"))
        best = min(error(by_centre, np.roll(truth, shift, axis=0)) for shift in (-1, 0, 1))
        ratios.append(error(by_centre, truth) / error(by_stamps, truth))
        aligned.append(best / error(by_stamps, truth))
    assert error(by_stamps, truth) < 0.12
    assert np.mean(ratios) < 1.15
    assert max(aligned) < 1.08


def test_radial_plans_refuse_what_is_cartesian():
    with pytest.raises(SettingsError, match="radial scans have no segments"):
        ScanPlan(**{**PLAN, "segments": 4})
    with pytest.raises(SettingsError, match="square pixels"):
        ScanPlan(**{**PLAN, "field_of_view_y": 200.0})


@pytest.mark.parametrize("realtime", ["sliding", "fixed"])
def test_windows_in_real_time_are_one_slice_of_a_report_and_one_loop(realtime):
    """Also where a frame has a readout more than the others."""
    scan, items = scan_of(frames=12)
    runs = [item for item in items if isinstance(item, Readouts)]
    sent = [part for run in runs for part in (run, run[run.headers["idx"]["phase"] == 10][:1]) if len(part)]
    gallery, collector = Gallery(), ReportCollector()
    header, settings = parse_header(scan.header), Settings.of(realtime=realtime, realtime_window=4)
    look = gallery.begin("a", header)

    def watch(complete, reconstruction):
        collector.watch(complete, reconstruction)
        look(complete, reconstruction)

    for item in Chain(header, settings, engine, watch=watch)(iter(sent)):
        if isinstance(item, Image):
            collector.add_image(item)
    (record,) = collector.slices
    assert (len(record.images), record.mask.shape, int(record.mask.sum())) == (12, (12, 14), 12 * 13 + 1)
    (loop,) = gallery.loops("a")
    assert len(loop.series) == 12


@pytest.mark.parametrize("at", [2, 40])
@pytest.mark.parametrize("broken", ["values", "empty"])
def test_spokes_behind_a_broken_one_keep_their_angles(broken, at):
    """The golden angle goes by the order of arrival, in which the one that is left out counts."""
    scan, items = scan_of(writes_trajectory="none")
    single = [item[i : i + 1] for item in items if isinstance(item, Readouts) for i in range(len(item))]
    spokes = [number for number, one in enumerate(single) if not one.flagged(AcquisitionFlag.NOISE).any()]
    one = single[spokes[at]]
    data = np.full_like(one.data, np.nan) if broken == "values" else one.data[:, :, :0]
    single[spokes[at]] = Readouts(one.headers, data)
    images, problems = made(scan, single, "cg_sense", trajectory="golden")
    assert [problem.count for problem in problems.damage] == [1]
    assert error(images, scan.truth.image[0]) < 0.15, "0.9 and 0.7 where all others are turned by one angle"
