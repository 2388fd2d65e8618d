"""The page and the picture of a run of the standard suite."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.evaluation.held_out import CONDITIONS
from gadgets.evaluation.suite import (
    COMPARED,
    DIFFERENCE_FORMS,
    NAMES,
    PART_TITLES,
    SCORE_FORMS,
    VARIED,
    Difference,
    Outcome,
    Row,
    Shown,
    differences,
    method_of,
    notes,
    row_label,
    scan_counts,
    score_text_of,
    summarise,
)
from gadgets.pictures import ERROR_GAIN, encoded, still, white_level
from gadgets.reports.page import SCORES_EXPLAINED, comparison, document
from recon_core.errors import SettingsError
from recon_core.methods import find_method
from recon_core.metrics.scores import SCORES
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from recon_core.weights.manifest import WeightsEntry

    Key = tuple[str, str, str, str]
    Facts = dict[str, str | int]
    Methods = dict[str, WeightsEntry | None]


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
    now = datetime.now().astimezone()
    facts = outcome.facts
    head = (
        '<header><h1>Evaluation <span class="method">standard suite</span></h1>'
        f'<p class="muted">cinestream {facts["version"]} &middot; torch {escape(str(facts["torch"]))} on '
        f"{facts['device']}, {facts['threads']} thread{'' if facts['threads'] == 1 else 's'} &middot; seed "
        f"{facts['seed']} &middot; {now:%d %B %Y, %H:%M}</p></header>"
    )
    used = "".join(
        f"<tr><td>{method}</td><td>{escape(entry.name)}</td><td>{entry.sha256[:16]}</td>"
        f"<td>{escape(entry.range.describe()) if entry.range else 'not recorded'}</td></tr>"
        for method, entry in {method_of(name): entry for name, entry in outcome.methods.items()}.items()
        if entry
    )
    weights = f"<table><tr><th></th><th>weights</th><th>sha256</th><th>trained for</th></tr>{used}</table>"
    said = "".join(f'<li class="notice">{escape(note)}</li>' for note in notes(outcome))
    legend = "".join(f"<tr><td>{_name(name)}</td><td>{one.title}</td></tr>" for name, one in CONDITIONS.items())
    about = (
        f"<section><h2>What was compared</h2><ul>{said}</ul>{weights if used else ''}"
        f'<table class="conditions">{legend}</table>{SCORES_EXPLAINED}</section>'
    )
    shown = {one.part: one for one in outcome.shown}
    rows = summarise(outcome.cells)
    parts = [_part(part, [row for row in rows if row.part == part], outcome, shown.get(part)) for part in PART_TITLES]
    parts.append(_compared(differences(outcome.cells)))
    foot = (
        f"<footer>cinestream {__version__}. Images: one window from zero to the 99.7th percentile of the truth; errors "
        f"are {ERROR_GAIN} times brighter.</footer>"
    )
    write_file(path, document("Evaluation – standard suite", "\n".join([head, about, *parts, foot])))


def _part(part: str, rows: Sequence[Row], outcome: Outcome, shown: Shown | None) -> str:
    if not rows:
        return ""
    columns = [name for name in SCORE_FORMS if any(name in row.median for row in rows)]
    head = "".join(f"<th>{SCORES[name].title}{' / dB' if 'psnr' in name else ''}</th>" for name in columns)
    n_scans = scan_counts(outcome, part)
    body = ""
    for condition in dict.fromkeys(row.condition for row in rows):
        ours = [row for row in rows if row.condition == condition]
        title = CONDITIONS[condition].title if condition in CONDITIONS else condition
        net = f'<span class="muted">net acceleration {ours[0].net_acceleration:.1f}</span>'
        body += f'<tr><th colspan="{len(columns) + 2}">{escape(title)} {net}</th></tr>'
        body += _condition(ours, columns, n_scans)
    scans = ", ".join(dict.fromkeys(cell.scan for cell in outcome.cells if cell.part == part))
    pictures = ""
    if shown is not None and shown.images:
        what = f"{shown.scan}, {CONDITIONS[shown.condition].title if shown.condition in CONDITIONS else 'as sampled'}"
        loops = comparison(
            list(shown.images.items()), shown.truth, white_level([shown.truth]), shown.aspect, shown.frame_seconds
        )
        pictures = f"<h2>{escape(what[:1].upper() + what[1:])}</h2>{loops}"
    return (
        f'<section class="slice"><h2>{PART_TITLES[part]} <span class="muted">{escape(scans)}</span></h2>'
        f'<table class="numbers suite"><tr><th>median, worst</th>{head}<th>s per series</th></tr>{body}</table>'
        f"{pictures}</section>"
    )


def _compared(found: Sequence[Difference]) -> str:
    if not found:
        return ""
    head = "".join(f"<th>{SCORES[name].title}{' / dB' if 'psnr' in name else ''}</th>" for name in DIFFERENCE_FORMS)
    body = ""
    for one in found:
        cells = "".join(
            f"<td>{score_text_of(form, one.median, name)} "
            f'<span class="muted">{score_text_of(form, one.worst, name)}</span></td>'
            for name, form in DIFFERENCE_FORMS.items()
        )
        body += f"<tr><td>{one.variant}</td><td>{one.scans}</td>{cells}</tr>"
    return (
        f'<section><h2>{COMPARED} <span class="muted">{CONDITIONS[VARIED].title}</span></h2>'
        f'<table class="numbers"><tr><th>median, worst</th><th>scans</th>{head}</tr>{body}</table></section>'
    )


def _condition(rows: Sequence[Row], columns: Sequence[str], n_scans: Mapping[str, int]) -> str:
    most = max(row.scans for row in rows)
    compared = [row for row in rows if row.scans == most]  # medians of fewer scans are of others
    best = {
        name: SCORES[name].best(row.median[name] for row in compared if name in row.median)
        for name in columns
        if any(name in row.median for row in compared)
    }
    lines = ""
    for row in rows:
        mark = f' <span class="muted">* {row.outside} of {row.scans} outside</span>' if row.outside else ""
        cells = ""
        for name in columns:
            is_best = name in best and row in compared and row.median.get(name) == best[name]
            style = ' class="best"' if len(compared) > 1 and is_best else ""
            worst = (
                f' <span class="muted">{score_text_of(SCORE_FORMS[name], row.worst, name)}</span>'
                if row.scans > 1
                else ""
            )
            cells += f"<td><span{style}>{score_text_of(SCORE_FORMS[name], row.median, name)}</span>{worst}</td>"
        seconds = f"{row.seconds:.2f}" if row.scans else "–"
        lines += f"<tr><td>{row_label(row.method, [row], n_scans)}{mark}</td>{cells}<td>{seconds}</td></tr>"
    return lines


def _name(condition: str) -> str:
    return condition.replace("_", " ")


def write_picture(path: Path, outcome: Outcome) -> None:
    """Draw one scan as a still figure, see `gadgets.pictures.still`.

    Columns are the truth, ``zero_filled``, ``cg_sense``, of the other methods without weights the best, and the best
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
    plain = ("zero_filled", "cg_sense")
    by_rank = sorted(ranked, key=lambda name: -ranked[name])
    networks = [name for name in by_rank if find_method(method_of(name)).network]
    classical = [name for name in by_rank if name not in (*networks, *plain)]
    chosen = {*classical[:1], *networks[:_MOST_NETWORKS]}
    return [*(name for name in plain if name in ranked), *(name for name in NAMES if name in chosen)]
