"""The page and the picture of a run of the standard suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gadgets.evaluation.held_out import CONDITIONS
from gadgets.evaluation.suite import (
    DIFFERENCE_FORMS,
    NAMES,
    PART_TITLES,
    SCORE_FORMS,
    comparisons,
    method_of,
    notes,
    row_label,
    scan_counts,
    score_text_of,
    summarise,
)
from gadgets.images.pictures import encoded, still, white_level
from gadgets.reports.page import comparison, render
from recon_core.errors import SettingsError
from recon_core.methods import find_method
from recon_core.metrics.scores import SCORES
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gadgets.evaluation.suite import Outcome, Row


_MOST_NETWORKS = 4  # in the figure


def write_suite_page(path: Path, outcome: Outcome) -> None:
    """Write one HTML file with a table for every part, and one scan of each to look at.

    Parameters
    ----------
    path
        Where to write.
    outcome
        Of `run_suite` with images.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    rows = summarise(outcome.cells)
    view = {
        "facts": outcome.facts,
        "notes": notes(outcome),
        "weights": {method_of(name): entry for name, entry in outcome.methods.items() if entry},
        "conditions": {name.replace("_", " "): one.title for name, one in CONDITIONS.items()},
        "parts": [_part(part, [row for row in rows if row.part == part], outcome) for part in PART_TITLES],
        "comparisons": comparisons(outcome),
        "score_forms": SCORE_FORMS,
        "difference_forms": DIFFERENCE_FORMS,
        "difference_titles": [_score_title(name) for name in DIFFERENCE_FORMS],
        "score_text_of": score_text_of,
    }
    write_file(path, render("suite.html", **view))


def _part(part: str, rows: Sequence[Row], outcome: Outcome) -> dict[str, object]:
    """What the page shows of a part; no conditions where nothing of it was measured."""
    n_scans = scan_counts(outcome, part)
    groups = []
    for condition in dict.fromkeys(row.condition for row in rows):
        ours = [row for row in rows if row.condition == condition]
        lines = [(row, row_label(row.method, [row], n_scans), _best_of(row, ours)) for row in ours]
        groups.append((_title(condition, condition), ours[0].net_acceleration, lines))
    shown = next((one for one in outcome.shown if one.part == part and one.images), None)
    return {
        "title": PART_TITLES[part],
        "scans": dict.fromkeys(cell.scan for cell in outcome.cells if cell.part == part),
        "columns": {name: _score_title(name) for name in SCORE_FORMS if any(name in row.median for row in rows)},
        "conditions": groups,
        "shown": shown and f"{shown.scan}, {_title(shown.condition, 'as sampled')}",
        "pictures": shown
        and comparison(
            list(shown.images.items()), shown.truth, white_level([shown.truth]), shown.aspect, shown.frame_seconds
        ),
    }


def _score_title(name: str) -> str:
    return f"{SCORES[name].title}{' / dB' if 'psnr' in name else ''}"


def _title(condition: str, otherwise: str) -> str:
    return CONDITIONS[condition].title if condition in CONDITIONS else otherwise


def _best_of(row: Row, rows: Sequence[Row]) -> set[str]:
    """Scores in which a row is the best of those with as many scans; medians of fewer scans are of others."""
    compared = [one for one in rows if one.scans == max(other.scans for other in rows)]
    if row not in compared or len(compared) < 2:
        return set()
    return {
        name
        for name, value in row.median.items()
        if value == SCORES[name].best(one.median[name] for one in compared if name in one.median)
    }


def write_picture(path: Path, outcome: Outcome) -> None:
    """Draw one scan as a still figure, see `gadgets.images.pictures.still`.

    Columns are the truth, ``zero_filled``, ``kt_sense``, of the other methods without weights the best, and the best
    four networks, by the PSNR of the dynamic region.

    Parameters
    ----------
    path
        Where to write, as PNG.
    outcome
        Of `run_suite` with images; the first part is drawn.

    Raises
    ------
    SettingsError
        If there is no image to draw.
    ResourceError
        If the file cannot be written.
    """
    shown = next((one for one in outcome.shown if one.images), None)
    if shown is None:
        raise SettingsError("no method made an image of the scan to draw; choose others with --methods")
    ranked = {
        cell.method: cell.scores.get("dynamic_psnr", 0.0)
        for cell in outcome.cells
        if (cell.part, cell.scan, cell.condition) == (shown.part, shown.scan, shown.condition) and cell.scores
    }
    columns = [(name, shown.images[name], f"{ranked[name]:.1f} dB") for name in _columns(ranked)]
    picture = still(shown.truth, columns, "dynamic PSNR", shown.aspect)
    write_file(path, encoded([picture], "PNG"))


def _columns(ranked: Mapping[str, float]) -> list[str]:
    """The methods to draw, out of those with an image and their rank."""
    plain = ("zero_filled", "kt_sense")
    by_rank = sorted(ranked, key=lambda name: -ranked[name])
    networks = [name for name in by_rank if find_method(method_of(name)).network]
    classical = [name for name in by_rank if name not in (*networks, *plain)]
    chosen = {*classical[:1], *networks[:_MOST_NETWORKS]}
    return [*(name for name in plain if name in ranked), *(name for name in NAMES if name in chosen)]
