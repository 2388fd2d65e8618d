import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.chain import ScanSummary
from gadgets.gating.gate import Beat
from gadgets.problems import Kind
from gadgets.reports.record import ReportCollector
from gadgets.settings.settings import Settings
from tests.gadgets.reports.test_scan import Checker, beating, collect, frames_of, image, make


class Tables(HTMLParser):
    """All tables of a page by their caption: rows of cells, and the scope of their headings."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.scopes, self._table, self._in = {}, [], None, ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._table = {"caption": "", "rows": []}
        elif tag == "tr":
            self._table["rows"].append([])
        elif tag in ("td", "th"):
            self._table["rows"][-1].append("")
            if tag == "th":
                self.scopes.append(dict(attributes).get("scope"))
        self._in = tag if tag in ("caption", "td", "th") else self._in

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self._table["caption"]] = self._table["rows"]
        if tag in ("caption", "td", "th"):
            self._in = ""

    def handle_data(self, data):
        if self._in == "caption":
            self._table["caption"] += data
        elif self._in:
            self._table["rows"][-1][-1] += data


def page_of(tmp_path, *slices, summary=None, **settings):
    """A report of slices, each given as keywords of `collect`."""
    collector = ReportCollector()
    for number, fields in enumerate(slices):
        collect(collector, **{"frames": beating(), "number": number, **fields})
    return make(tmp_path, collector, summary=summary, settings=Settings.of(**settings))[0]


def rows_of(page, caption):
    head, *rows = Tables(page).tables[caption]
    return [dict(zip(head[1:], row[1:], strict=True)) for row in rows]


def verdict_of(page):
    (found,) = [attributes for tag, attributes in Checker(page).tags if attributes.get("role") == "status"]
    return found["class"].split()[1], page.partition('role="status">')[2].partition("</p>")[0]


def damaged(*, damage):
    summary = ScanSummary(slices=1, images=6)
    summary.problems.add(Kind.ABSENT_FRAMES, "frame 3 never came", damage=damage)
    return summary


# --- verdict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices", "fields", "kind", "words"),
    [
        ([{}, {}], {}, "good", ["All 12 images of 2 slices were made with cg_sense.", "No warnings"]),
        ([{}, {"number": 0, "contrast": 1}], {}, "good", ["All 12 images of 1 slice were made with cg_sense."]),
        ([{}], {"summary": damaged(damage=False)}, "warn", ["All 6 images of 1 slice", "1 warning, see below"]),
        ([{}], {"summary": damaged(damage=True)}, "bad", ["were lost: frame 3 never came"]),
        (
            [{}, {"method": "crunet_mr"}],
            {"method": "crunet_mr"},
            "warn",
            ["slice 0 with cg_sense instead of crunet_mr"],
        ),
        ([{}, {}], {"method": "crunet_mr"}, "warn", ["all of them with cg_sense instead of crunet_mr"]),
        ([{}, {"doubts": ("too fast",)}], {}, "warn", ["doubtful: slice 1"]),
        ([], {"summary": damaged(damage=True)}, "bad", ["No images were made."]),
    ],
)
def test_the_first_line_says_what_came_of_the_scan(tmp_path, slices, fields, kind, words):
    page = page_of(tmp_path, *slices, **fields)
    found, text = verdict_of(page)
    assert found == kind
    assert all(word in text for word in words)
    assert page.index('role="status"') < page.index("<section")


def test_the_first_loop_shows_all_slices_in_step(tmp_path):
    page = page_of(tmp_path, *[{"frames": beating(7 + number, (96, 340))} for number in range(3)])
    first = Checker(page).loops[0]
    assert [one["caption"] for one in first["panels"]] == ["slice 0", "slice 1", "slice 2"]
    assert {frames_of(one).shape for one in first["panels"]} == {(7, 96 // 3, 340 // 3)}
    assert "All slices" not in page_of(tmp_path, {})


def test_the_first_loop_shows_the_images_in_their_own_unit_whatever_the_truth_has(tmp_path):
    collector = ReportCollector()
    frames = beating()
    for number in range(2):
        collect(collector, 700 * frames, number)
    page, _ = make(tmp_path, collector, truth=np.stack([frames, frames]))
    pixels = frames_of(Checker(page).loops[0]["panels"][0])
    assert 0.2 < np.mean(pixels < 60) < 0.95


def test_slices_of_another_size_are_left_out_of_the_first_loop(tmp_path):
    page = Checker(page_of(tmp_path, {}, {"frames": beating(6, (20, 20))}, {}))
    assert [one["caption"] for one in page.loops[0]["panels"]] == ["slice 0", "slice 2"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_can_be_read_without_seeing_them(tmp_path):
    tables = Tables(page_of(tmp_path, {"rr": 900.0}, {}, iterations=7))
    assert len(tables.tables) >= 7
    assert all(tables.tables)
    assert set(tables.scopes) == {"col", "row"}


def test_wide_tables_scroll_by_themselves(tmp_path):
    page = page_of(tmp_path, {}, {})
    assert page.count("<table") == page.count('<div class="wide"><table') > 0
    assert ".wide { overflow-x: auto; }" in page


def test_every_slice_says_what_the_range_check_said(tmp_path):
    replaced = "cg_sense instead of crunet_mr: the scan has R = 20"
    slices = [
        {"notes": (replaced,)},
        {"method": "crunet_mr"},
        {"method": "crunet_mr", "doubts": ("far from cg_sense",)},
    ]
    found = [row["check of range and image"] for row in rows_of(page_of(tmp_path, *slices, method="crunet_mr"), CHECKS)]
    assert found == [
        "the scan has R = 20",
        "scan like those of its training, image agrees with the data",
        "far from cg_sense",
    ]
    assert rows_of(page_of(tmp_path, {}), CHECKS)[0]["check of range and image"] == "none needed"


def test_what_was_chosen_for_a_slice_is_as_asked_for_and_says_why(tmp_path):
    chosen, doubted = "auto: crunet_mr (+0.4 dB)", "kt_sense instead of crunet_mr: far from kt_sense"
    slices = [
        {"method": "crunet_mr", "notes": (chosen, "weights crunet_mr")},
        {"method": "kt_sense", "notes": ("maps of few lines", chosen, doubted)},
    ]
    page = page_of(tmp_path, *slices, method="auto")
    found = [row["check of range and image"] for row in rows_of(page, CHECKS)]
    assert found == [chosen, f"{chosen}; {doubted}"]
    assert "were made with auto" in page
    assert "instead of auto" not in page


CHECKS = "How every slice was made"


def test_beats_are_counted_and_drawn(tmp_path):
    beats = (
        Beat(800.4, "regular", used=True),
        Beat(500, "rejected", used=False),
        Beat(810, "repaired", used=True),
        Beat(790, "regular", used=True),
    )
    times = {"rr": 800.0, "step": 133.3}
    page = page_of(tmp_path, {"beats": beats, **times}, times)
    gated, triggered = rows_of(page, "Beats of every slice")
    assert gated == {
        "RR": "800 ms",
        "rate": "75/min",
        "first and last frame after the R wave": "250 to 916 ms",
        "frame": "133.3 ms",
        "beats used": "3 of 4",
        "rejected": "1",
        "repaired": "1",
    }
    assert triggered == {**gated, "beats used": "–", "rejected": "–", "repaired": "–"}
    drawn = [
        attributes.get("class") for tag, attributes in Checker(page).tags if tag == "rect" and "class" in attributes
    ]
    assert [name.split() for name in drawn] == [[], ["rejected", "unused"], [], []]


def test_why_there_are_no_times_is_reported(tmp_path):
    assert "Not known (no gating was <on>)." in Checker(page_of(tmp_path, {"doubt": "no gating was <on>"})).text


def test_geometry_shows_places_directions_and_distances(tmp_path):
    tilted = np.array([0, np.sin(np.radians(20)), np.cos(np.radians(20))])
    directions = {"read_dir": (1, 0, 0), "phase_dir": np.cross(tilted, (1, 0, 0)), "slice_dir": tilted}
    slices = [{**directions, "position": 10 * number * tilted + (3, 0, 0)} for number in range(2)]
    first, second = rows_of(page_of(tmp_path, *slices), "Where the slices lie")
    assert first["position"] == "3.0, 0.0, 0.0"
    assert second["position"] == "3.0, 3.4, 9.4"
    assert first["rows run"] == "to the left"
    assert first["columns run"] == "to the back, 20° off"
    assert first["normal"] == "to the head, 20° off"
    assert (first["to the one before"], second["to the one before"]) == ("–", "10.0 mm")


def test_noise_is_that_of_the_receive_coils(tmp_path):
    covariance = np.array([[4, 1, 0], [1, 1, 0], [0, 0, 1]])
    colouring = np.linalg.cholesky(covariance).astype(np.complex64)
    found = Tables(page_of(tmp_path, {"colouring": colouring})).tables["Noise of the receive coils"]
    values = dict(row for row in found if row[0])
    assert values == {
        "noisiest coil over the quietest": "2.00",
        "largest correlation of two coils": "0.50 (coils 0 and 1)",
        "mean correlation of two coils": "0.17",
    }
    assert "Noise correlation" not in page_of(tmp_path, {"whitened": False})


# --- the page ---------------------------------------------------------------------------------------------------------


def test_other_images_of_a_slice_are_shown(tmp_path):
    collector = ReportCollector()
    collect(collector, beating())
    for value, kind in ((150.0, "g-factor"), (100.0, "difference"), (200.0, "difference"), (70.0, "preview")):
        collector.add_image(image(np.full((24, 32), value, np.float32), kind, window=300))
    page, _ = make(tmp_path, collector)
    pictures = {
        attributes["alt"]: attributes["src"]
        for tag, attributes in Checker(page).tags
        if tag == "img" and "src" in attributes
    }
    for name in ("g-factor", "difference, temporal mean"):
        with Picture.open(io.BytesIO(base64.b64decode(pictures[name].partition(",")[2]))) as picture:
            assert set(np.asarray(picture).ravel()) == {128}
    assert len(collector.slices[0].images) == 6


def test_settings_left_as_they_are_are_folded_away(tmp_path):
    tables = Tables(page_of(tmp_path, {}, iterations=7)).tables
    assert [row[0] for row in tables["Settings that were changed"]] == ["iterations"]
    assert len(tables["Settings as by default"]) > 40
    assert "<details>" in page_of(tmp_path, {})


def test_the_page_is_for_paper_and_for_light_and_dark_screens(tmp_path):
    page = page_of(tmp_path, {})
    for rule in ("@media print", "@media (prefers-color-scheme: light)", "color-scheme: light dark"):
        assert rule in page


@pytest.mark.slow
def test_three_slices_of_a_usual_scan_make_a_small_file(tmp_path):
    page = page_of(tmp_path, *[{"frames": beating(25, (156, 192), seed)} for seed in range(3)])
    assert len(page) < 5e6
