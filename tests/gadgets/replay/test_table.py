"""The table of a batch in its two forms."""

import csv
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

from gadgets.replay.job import Outcome
from gadgets.replay.plan import Entry
from gadgets.replay.table import Row, Table, csv_of
from recon_core.errors import ResourceError

needs_arrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason='needs pip install ".[parquet]"')
ENTRY = Entry(Path("1.h5"), Path("out/1.h5"))


def test_texts_of_others_are_no_formulas():
    outcome = Outcome(["=HYPERLINK(1)\x1b[2J"], methods={"@x": 1}, seconds=-1.0)
    entry = Entry(Path("+1.h5"), Path("out/1.h5"))
    (row,) = csv.DictReader(io.StringIO(csv_of([Row(entry, outcome)]).decode()))
    assert row["input"] == "'+1.h5"
    assert row["problems"] == "'=HYPERLINK(1)\\x1b[2J"
    assert row["methods"] == "'@x:1"
    assert row["seconds"] == "-1.0"


def test_of_a_file_without_an_outcome_nothing_is_said():
    (row,) = csv.DictReader(io.StringIO(csv_of([Row(ENTRY, None)]).decode()))
    assert (row["outcome"], row["status"], row["readouts"]) == ("", "", "0")


@needs_arrow
def test_parquet_has_the_rows_with_their_types(tmp_path):
    from pyarrow import parquet

    outcome = Outcome(["=broken", "late"], damaged=True, readouts=9, images=6, methods={"cg_sense": 2}, seconds=1.5)
    table = Table(tmp_path / "out.parquet")
    table.write([Row(ENTRY, None)])
    table.write([Row(ENTRY, outcome, "now", 2), Row(ENTRY, None)])
    done, open_ = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert done == {
        "input": "1.h5",
        "output": "out/1.h5",
        "outcome": "damaged",
        "status": 1,
        "made": "now",
        "tries": 2,
        "readouts": 9,
        "slices": 0,
        "images": 6,
        "seconds": 1.5,
        "seconds of slices": 0.0,
        "methods": "cg_sense:2",
        "worker": "",
        "problems": "=broken; late",
    }
    assert (open_["outcome"], open_["status"], open_["tries"]) == (None, None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_without_pyarrow_what_to_install_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=re.escape('pip install "cinestream[parquet]"')):
        Table(tmp_path / "out.parquet")
    Table(tmp_path / "out.csv")
