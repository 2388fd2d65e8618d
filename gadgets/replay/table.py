"""The table of a batch: a row for every raw file, as CSV or as Parquet."""

from __future__ import annotations

import csv
import importlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recon_core.errors import ResourceError
from recon_core.printable import printable
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gadgets.replay.job import Outcome
    from gadgets.replay.plan import Entry

    Cell = str | int | float | None

#: Name of the table, in the folder of the images, where the operator gives none.
TABLE = "outcomes.csv"


@dataclass
class Row:
    """A raw file and its outcome."""

    entry: Entry
    outcome: Outcome | None
    """None while it is not known."""
    made: str = ""
    """``now``, ``before``, or ``no`` images."""
    tries: int = 0
    """How often it was begun."""


class Table:
    """The file of a table.

    Parameters
    ----------
    path
        Its name ends as one of `FORMS`.

    Raises
    ------
    ResourceError
        If what writes this form is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encode = FORMS[path.suffix]
        self._encode([])

    def write(self, rows: Sequence[Row]) -> None:
        """Write it whole, in place of what was written before.

        Raises
        ------
        ResourceError
            If it cannot be written.
        """
        write_file(self._path, self._encode(rows))


#: Columns of the table with their types, and what stands in them; of a file without an outcome the counts are zero.
_COLUMNS: dict[str, tuple[type, Callable[[Row, Outcome], Cell]]] = {
    "input": (str, lambda row, _: str(row.entry.source)),
    "output": (str, lambda row, _: str(row.entry.output)),
    "outcome": (str, lambda row, outcome: None if row.outcome is None else outcome.word),
    "status": (int, lambda row, outcome: None if row.outcome is None else outcome.status),
    "made": (str, lambda row, _: row.made),
    "tries": (int, lambda row, _: row.tries),
    "readouts": (int, lambda _, outcome: outcome.readouts),
    "slices": (int, lambda _, outcome: outcome.slices),
    "images": (int, lambda _, outcome: outcome.images),
    "seconds": (float, lambda _, outcome: outcome.seconds),
    "seconds of slices": (float, lambda _, outcome: outcome.slice_seconds),
    "methods": (str, lambda _, outcome: " ".join(f"{name}:{count}" for name, count in outcome.methods.items())),
    "worker": (str, lambda _, outcome: outcome.worker),
    "problems": (str, lambda _, outcome: "; ".join(outcome.problems)),
}


def csv_of(rows: Sequence[Row]) -> bytes:
    """Write rows as CSV, with texts of others so that no spreadsheet takes them for formulas."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows(zip(*([_no_formula(cell) for cell in _cells(name, rows)] for name in _COLUMNS), strict=True))
    return text.getvalue().encode()


def _no_formula(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def parquet_of(rows: Sequence[Row]) -> bytes:
    """Write rows as Parquet.

    Raises
    ------
    ResourceError
        If pyarrow is not installed.
    """
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        text = f'a table in Parquet needs pyarrow ({error}): pip install "cinestream[parquet]"'
        raise ResourceError(text) from error
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    columns = {name: arrow.array(_cells(name, rows), types[kind]) for name, (kind, _) in _COLUMNS.items()}
    content = io.BytesIO()
    parquet.write_table(arrow.table(columns), content)
    return content.getvalue()


#: Forms of the table by the end of its name.
FORMS: dict[str, Callable[[Sequence[Row]], bytes]] = {".csv": csv_of, ".parquet": parquet_of}


def _cells(name: str, rows: Sequence[Row]) -> list[Cell]:
    """A column, with texts of others without control characters."""
    from gadgets.replay.job import Outcome

    kind, find = _COLUMNS[name]
    cells = [find(row, row.outcome or Outcome()) for row in rows]
    return [printable(str(cell)) if kind is str and cell is not None else cell for cell in cells]
