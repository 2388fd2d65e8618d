import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.chain import ScanSummary
from gadgets.gating.gate import Gating
from gadgets.gating.heartbeat import Heartbeat
from gadgets.images.maker import CineImage
from gadgets.images.pictures import moving_part
from gadgets.problems import Kind
from gadgets.reports.record import ReportCollector
from gadgets.reports.scan import write_gif, write_report
from gadgets.settings.settings import Settings
from gadgets.slices.complete import CompleteSlice, SliceKey
from gadgets.wire.header import parse_header
from gadgets.wire.messages import ACQUISITION_HEADER, IMAGE_HEADER
from recon_core.coils.running_maps import RunningMaps
from recon_core.data import CineSlice, Receiver, Reconstruction
from recon_core.errors import DataError, ResourceError, SettingsError
from recon_core.metrics.scores import score

VOID = {"meta", "img", "br", "image", "link", "input", "hr"}
SPACE = (
    "<matrixSize><x>{}</x><y>24</y><z>1</z></matrixSize><fieldOfView_mm><x>{}</x><y>240</y><z>8</z></fieldOfView_mm>"
)
HEADER = parse_header(
    "<ismrmrdHeader><measurementInformation><protocolName>cine &lt;b&gt; &amp; more</protocolName>"
    "</measurementInformation><acquisitionSystemInformation><systemVendor>ACME</systemVendor>"
    "</acquisitionSystemInformation><encoding><trajectory>cartesian</trajectory>"
    f"<encodedSpace>{SPACE.format(64, 640)}</encodedSpace><reconSpace>{SPACE.format(32, 320)}</reconSpace>"
    "</encoding></ismrmrdHeader>"
)


def beating(n_frames=6, shape=(24, 32), seed=0):
    """A bright disc that grows and shrinks over a dim background."""
    y, x = np.indices(shape)
    radius = shape[0] * (0.2 + 0.08 * np.sin(2 * np.pi * np.arange(n_frames) / n_frames))
    disc = np.hypot(y - 0.5 * shape[0], x - 0.6 * shape[1]) < radius[:, None, None]
    return (disc + 0.1 + 0.01 * np.random.default_rng(seed).random((n_frames, *shape))).astype(np.float32)


def collect(
    collector,
    frames,
    number=0,
    *,
    step=40.0,
    rr=0.0,
    doubt="",
    notes=(),
    whitened=True,
    contrast=0,
    method="cg_sense",
    doubts=(),
    colouring=None,
    beats=(),
    running=None,
    **place,
):
    """Let a collector see one slice as the chain shows it, its frames `step` ms apart."""
    n_frames, n_rows, n_columns = frames.shape
    mask = np.zeros((n_frames, n_rows), bool)
    mask[:, ::2] = True
    cine = CineSlice(
        np.zeros((n_frames, 3, n_rows, n_columns), np.complex64),
        mask,
        receiver=Receiver((np.eye(3, dtype=np.complex64) if colouring is None else colouring) if whitened else None),
    )
    key = SliceKey(0, 0, 0, contrast, number)
    headers = np.zeros(n_frames, ACQUISITION_HEADER)
    for name, value in place.items():
        headers[name] = value
    since = 250 + step * np.arange(n_frames)
    heartbeat = Heartbeat(np.full(n_frames, np.nan) if doubt else since, np.zeros(n_frames), rr=rr, doubt=doubt)
    gating = Gating("stamps", rr, beats) if beats else None
    complete = CompleteSlice(
        key, cine, headers, heartbeat, np.arange(n_frames), mask.sum(axis=1), notes, gating=gating, running=running
    )
    maps = np.ones((3, n_rows, n_columns), np.complex64)
    made = Reconstruction(frames.astype(np.complex64), maps, method, {"maps": 0.25}, doubts=doubts)
    collector.watch(complete, made)
    for frame in frames:
        collector.add_image(image(frame))


def image(frame, kind="", window=1.0):
    """An image as the chain gives it."""
    header = np.zeros((), IMAGE_HEADER)
    return CineImage(header, frame[None, None], kind=kind, window=window, flipped=False)


def collected(series, step=40.0):
    collector = ReportCollector()
    for number, frames in enumerate(series):
        collect(collector, frames, number, step=step)
    return collector


def named(series):
    return [("slice", frames) for frames in series]


def make(tmp_path, collector, *, truth=None, summary=None, settings=None, source="scan.h5"):
    path = tmp_path / "report.html"
    summary = summary or ScanSummary(readouts=77, images=6, slices=1, seconds={"maps": 0.25, "slice": 0.5})
    totals = write_report(path, collector, HEADER, settings or Settings(), summary, truth, source)
    return path.read_text(encoding="utf-8"), totals


def frames_of(panel):
    """Gray values ``(frame, y, x)`` of a panel of a viewer, taken from its picture as the script does."""
    with Picture.open(io.BytesIO(base64.b64decode(panel["source"].partition(",")[2]))) as picture:
        pixels = np.asarray(picture)
    rows, columns, step = panel["rows"], panel["columns"], panel["gap"]
    corners = [divmod(number, panel["across"]) for number in range(panel["frames"])]
    places = [(y * (rows + step), x * (columns + step)) for y, x in corners]
    return np.stack([pixels[y : y + rows, x : x + columns] for y, x in places])


class Checker(HTMLParser):
    """Every element is closed where it must be; collects all addresses and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.words, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    @property
    def loops(self):
        """What the viewers show, with an array ``(frame, y, x)`` of every panel."""
        return [json.loads(found["data-loop"]) for _, found in self.tags if "data-loop" in found]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# --- collecting -------------------------------------------------------------------------------------------------------


def test_series_are_magnitudes_in_the_order_of_their_counters():
    collector = ReportCollector()
    late, early = beating(seed=1), beating(4, (20, 16))
    collect(collector, late * 1j, number=1)
    collect(collector, early, number=0)
    (name, first), (_, second) = collector.series()
    assert name == "slice 0"
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_array_equal(first, early)
    np.testing.assert_allclose(second, late, rtol=1e-6)


def test_slices_of_other_contrasts_have_names_of_their_own():
    collector = ReportCollector()
    collect(collector, beating(), contrast=1)
    collect(collector, beating())
    assert [name for name, _ in collector.series()] == ["slice 0", "slice 0, contrast 1"]


def test_image_without_a_slice_is_refused():
    with pytest.raises(DataError, match="watch"):
        ReportCollector().add_image(image(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize(("step", "seconds"), [(40, 0.04), (30, 0.03), (0, 0.04), (-5, 0.04), (2.5, 0.02), (9000, 0.2)])
def test_loop_follows_the_time_stamps_within_reason(step, seconds):
    collector = ReportCollector()
    assert collector.frame_seconds == 0.04
    collect(collector, beating(), step=step)
    assert collector.frame_seconds == pytest.approx(seconds)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_perfect_scan_in_another_unit_scores_perfectly():
    truth = np.stack([beating(), beating(seed=1)])
    totals = score(named(truth * np.float32(512)), truth * 1j)
    assert totals["nrmse"] < 1e-6
    assert totals["ssim"] == pytest.approx(1)
    assert totals["psnr"] > 120


def test_a_known_error_gives_the_known_score():
    truth = np.full((1, 2, 8, 8), 3, np.float32)
    truth[..., :4] = 4
    error = np.zeros_like(truth)
    error[..., :4], error[..., 4:] = 0.3, -0.4  # orthogonal to the truth, so that the best factor is known
    factor = 25 / 25.25
    totals = score(named(truth + error), truth)
    # |truth|^2 = 25, |error|^2 = 0.25 per pair of pixels; what remains after the factor is the part across
    expected = np.sqrt((factor - 1) ** 2 * 25 + factor**2 * 0.25) / 5
    assert totals["nrmse"] == pytest.approx(expected, rel=1e-5)
    assert totals["psnr"] == pytest.approx(20 * np.log10(4 / (expected * 5 / np.sqrt(2))), rel=1e-5)
    assert "dynamic_psnr" not in totals  # nothing moves


def test_one_factor_holds_for_all_slices():
    truth = np.stack([beating(), beating(seed=1)])
    totals = score(named([truth[0], truth[1] * 2]), truth)
    assert totals["nrmse"] > 0.2


def test_dynamic_psnr_sees_only_what_moves():
    truth = beating()[None]
    still = truth.std(axis=1) <= np.percentile(truth.std(axis=1), 90)
    checkered = 0.01 * (-1.0) ** np.indices((24, 32)).sum(axis=0)  # leaves the best factor near one
    wrong = (truth + np.where(still[:, None], checkered, 0)).astype(np.float32)
    totals = score(named(wrong), truth)
    assert totals["dynamic_psnr"] > totals["psnr"] + 5


@pytest.mark.parametrize("shape", [(1, 6, 24, 32), (2, 5, 24, 32), (2, 6, 24), (0, 6, 24, 32)])
def test_truth_of_another_shape_is_refused(shape):
    with pytest.raises(SettingsError, match=r"2 slices of \(6, 24, 32\), got " + re.escape(str(shape))):
        score(named([beating(), beating()]), np.ones(shape))


def test_truth_for_slices_of_different_sizes_is_refused():
    with pytest.raises(SettingsError, match=r"\(5, 24, 32\) and \(6, 24, 32\)"):
        score(named([beating(), beating(5)]), np.ones((2, 6, 24, 32)))


# --- GIF --------------------------------------------------------------------------------------------------------------


def test_gif_loops_over_the_frames(tmp_path):
    path = tmp_path / "cine.gif"
    write_gif(path, collected(beating(7)[None], step=50.0))
    with Picture.open(path) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"], gif.info["duration"]) == ("GIF", 7, 0, 50)
        assert gif.size == (341, 256)
        shown = np.asarray(gif.convert("L"))
    assert shown[128, 205] > 248  # middle of the disc
    assert 10 < shown[10, 10] < 50  # background, a tenth


def test_gif_lays_slices_in_a_grid_and_keeps_them_in_step(tmp_path):
    path = tmp_path / "cine.gif"
    write_gif(path, collected([beating(8, (300, 260)), beating(4, (260, 300)), beating(8, (280, 280))]))
    with Picture.open(path) as gif:
        assert gif.n_frames == 8
        assert gif.size == (2 * 256 + 2, 2 * 256 + 2)  # 186 of 300 pixels, enlarged


def test_gif_shows_what_moves(tmp_path):
    """Also where the truth says what that is, and the images move elsewhere too."""
    truth = np.roll(beating(6, (256, 256)), (60, -80), (1, 2))[None]
    wrong = truth.copy()
    wrong[0, ::2, 5:30, 200:] += 3
    write_gif(tmp_path / "cine.gif", collected(wrong), truth)
    with Picture.open(tmp_path / "cine.gif") as gif:
        shown = np.asarray(gif.convert("L")).astype(int)
    assert (shown[:, 258:514] > 200).sum() == pytest.approx((truth[0, 0] > 1).sum() * (256 / 159) ** 2, rel=0.05)


def test_gif_with_truth_shows_the_error_too(tmp_path):
    truth = beating(3, (256, 256))[None]
    wrong = truth.copy()
    wrong[0, :, 100:110, 100:110] += 0.1
    path = tmp_path / "cine.gif"
    write_gif(path, collected(wrong), truth)
    with Picture.open(path) as gif:
        assert gif.size == (3 * 256 + 4, 256)
        shown = np.asarray(gif.convert("L")).astype(int)
    rows, columns = moving_part(truth[0])
    factor = 256 / (rows.stop - rows.start)
    y, x = (round((105 - part.start) * factor) for part in (rows, columns))
    error = shown[:, -256:]
    assert error[y, x] == pytest.approx(255 * 5 * 0.1 / 1.1, abs=12)
    assert error[200, 200] < 8
    np.testing.assert_allclose(shown[:, 258:514][200], shown[:, :256][200], atol=4)


def test_gif_of_one_dark_frame(tmp_path):
    write_gif(tmp_path / "dark.gif", collected(np.zeros((1, 1, 16, 16), np.float32)))
    with Picture.open(tmp_path / "dark.gif") as gif:
        assert gif.n_frames == 1


def test_gif_errors(tmp_path):
    with pytest.raises(DataError, match="no images"):
        write_gif(tmp_path / "a.gif", ReportCollector())
    with pytest.raises(ResourceError, match="absent"):
        write_gif(tmp_path / "absent" / "a.gif", collected(beating()[None]))
    with pytest.raises(SettingsError, match="truth"):
        write_gif(tmp_path / "a.gif", collected(beating()[None]), np.ones((2, 6, 24, 32)))


# --- report -----------------------------------------------------------------------------------------------------------


def test_report_is_one_self_contained_well_formed_page(tmp_path):
    collector = ReportCollector()
    collect(collector, beating())
    collect(collector, beating(9, (20, 30)), number=1)
    page, totals = make(tmp_path, collector)
    checked = Checker(page)
    assert totals == {}
    assert checked.addresses
    assert all(address.startswith("data:image/png;base64,") for address in checked.addresses)
    assert all(one["source"].startswith("data:image/png;base64,") for loop in checked.loops for one in loop["panels"])
    assert "url(" not in page
    assert "://" not in page.replace("http://www.w3.org", "")
    for word in ("Slice 0", "Slice 1", "32 × 24", "encoded 64 × 24", "320 × 240 mm", "ACME", "77", "6 to 9"):
        assert word in checked.text
    assert "Agreement" not in checked.text


def test_report_shows_the_measured_acceleration_and_times(tmp_path):
    collector = ReportCollector()
    collect(collector, beating())
    text = Checker(make(tmp_path, collector)[0]).text
    assert "Acceleration 2.00 72 of 144 lines" in text
    assert "maps 0.250 s 250 ms" in text
    assert "all 0.500 s 500 ms" in text
    assert "Lines per frame (12 of 24)" in text


def test_report_with_truth_shows_and_returns_the_scores(tmp_path):
    collector = ReportCollector()
    truth = np.stack([beating(), beating(seed=1)])
    rng = np.random.default_rng(2)
    images = truth * 7 + 0.2 * rng.random(truth.shape, dtype=np.float32)
    for number in (1, 0):  # interleaved slices may be ready in any order
        collect(collector, images[number], number)
    page, totals = make(tmp_path, collector, truth=truth.astype(np.complex64))
    assert totals == pytest.approx(score(named(images), truth))
    text = Checker(page).text
    for shown in (f"{totals['nrmse']:.4f}", f"{totals['psnr']:.2f} dB", f"{totals['ssim']:.4f}", "all slices"):
        assert shown in text
    assert f"{totals['dynamic_psnr']:.2f} dB" in text
    assert text.count("Error × 5, RMS over time") == 2


def test_loops_of_the_report_are_the_images_and_their_errors(tmp_path):
    truth = beating(7, (48, 64))[None]
    wrong = truth.copy()
    wrong[0, :, 20:30, 30:40] += 0.1
    (loop,) = Checker(make(tmp_path, collected(wrong, step=50.0), truth=truth)[0]).loops
    assert loop["seconds"] == 0.05
    ours, theirs, error = (frames_of(one).astype(float) for one in loop["panels"])
    rows, columns = moving_part(truth[0])
    white = loop["panels"][0]["white"]
    np.testing.assert_allclose(theirs / white, (truth[0] / 1.1)[:, rows, columns], atol=0.02)
    assert np.abs(ours - theirs).max() == pytest.approx(0.1 / 1.1 * white, abs=4)
    assert error.max() == pytest.approx(5 * 0.1 / 1.1 * white, rel=0.1)
    assert error[:, 0].max() < 8


def test_report_survives_a_slice_with_an_empty_truth(tmp_path):
    collector = ReportCollector()
    truth = np.stack([beating(), np.zeros((6, 24, 32), np.float32)])
    for number in (0, 1):
        collect(collector, beating(), number)
    assert "slice 1 – – – –" in Checker(make(tmp_path, collector, truth=truth)[0]).text


def test_report_shows_problems_and_escapes_all_that_others_wrote(tmp_path):
    collector = ReportCollector()
    collect(collector, beating(), notes=("frame <5> lacks lines",))
    summary = ScanSummary(slices=1, images=6)
    summary.problems.add(Kind.NOISE, "odd & handled", damage=False)
    summary.problems.add(Kind.VALUES, "<script>alert(1)</script>", damage=True, count=3)
    settings = Settings.of(description="<i>mine</i>", iterations=7)
    page, _ = make(tmp_path, collector, summary=summary, settings=settings, source="<img src=x>.h5")
    checked = Checker(page)
    for text in ("<script>alert(1)</script> (the first of 3 such cases)", "odd & handled", "frame <5> lacks lines"):
        assert text in checked.text
    for text in ("cine <b> & more", "<i>mine</i>", "<img src=x>.h5"):
        assert text in checked.text
    assert {"b>", "i>"}.isdisjoint(tag for tag, _ in checked.tags)
    assert [tag for tag, _ in checked.tags].count("script") == 1, "that of the viewer"
    assert [attributes["class"] for tag, attributes in checked.tags if tag == "li"] == ["damage", "notice", "notice"]
    assert sum(attributes.get("class") == "changed" for tag, attributes in checked.tags if tag == "tr") == 2


@pytest.mark.parametrize(
    ("whitened", "wanted", "text"),
    [(True, True, "noise-whitened"), (False, True, "no usable noise scan"), (False, False, "switched off")],
)
def test_report_shows_whether_the_noise_was_whitened(tmp_path, whitened, wanted, text):
    collector = ReportCollector()
    collect(collector, beating(), whitened=whitened)
    assert text in Checker(make(tmp_path, collector, settings=Settings.of(whiten=wanted))[0]).text


def test_profile_runs_through_what_moves(tmp_path):
    collector = ReportCollector()
    collect(collector, beating())
    column = re.search(r"dashed line \(x = (\d+)", Checker(make(tmp_path, collector)[0]).text)
    assert 13 <= int(column[1]) <= 27


def test_long_and_single_frame_series_make_a_report_too(tmp_path):
    collector = ReportCollector()
    collect(collector, beating(300, (24, 24)))
    collect(collector, beating(1), number=1)
    page = Checker(make(tmp_path, collector)[0])
    text = page.text
    assert [(one["frames"], one["caption"]) for loop in page.loops[1:] for one in loop["panels"]] == [
        (240, "Reconstruction, what moves (first 240 of 300 frames)"),
        (1, "Reconstruction, what moves"),
    ]
    assert "Slice 1 cg_sense · 1 frame · 0.25 s" in text


def test_report_without_images_still_shows_what_happened(tmp_path):
    summary = ScanSummary(readouts=5)
    summary.problems.add(Kind.RECONSTRUCTION, "slice 0 could not be reconstructed", damage=True)
    assert "could not be reconstructed" in Checker(make(tmp_path, ReportCollector(), summary=summary)[0]).text


def test_report_errors(tmp_path):
    collector = ReportCollector()
    collect(collector, beating())
    with pytest.raises(SettingsError, match=r"1 slices of \(6, 24, 32\), got \(1, 6, 24, 30\)"):
        make(tmp_path, collector, truth=np.ones((1, 6, 24, 30)))
    with pytest.raises(ResourceError, match="absent"):
        make(tmp_path / "absent", collector)


def test_windows_of_a_series_in_real_time_make_one_slice():
    frames, collector = beating(6), ReportCollector()
    for part, note in ((frames[:4], "first"), (frames[4:5], "first"), (frames[5:], "last")):
        for number in range(2):
            collect(collector, part, number, notes=(note,), running=RunningMaps())
    assert [name for name, _ in collector.series()] == ["slice 0", "slice 1"]
    for record in collector.slices:
        np.testing.assert_array_equal(np.stack(record.images), frames)
        assert record.mask.shape[0] == 6
        assert record.notes == ("first", "last")
        assert record.seconds == 0.75
