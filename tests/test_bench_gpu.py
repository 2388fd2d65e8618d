"""The measurements of the GPU run on any machine, at a tiny size, so that time on a GPU is not lost to their faults."""

import json

import pytest
import torch

from tests.bench.gpu import STAGES, Bench, main, published
from tests.helpers.emulated_gpu import EmulatedGPU


def measured(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def tiny(folder, *stages, minutes="1"):
    main([*stages, "--device", "cpu", "--tiny", "--minutes", minutes, "--out", str(folder)])


def test_two_stages_write_lines_and_tables_and_go_on(tmp_path):
    tiny(tmp_path, "machine", minutes="0")
    assert not (tmp_path / "results.jsonl").exists()
    tiny(tmp_path, "machine", "consistency")
    rows = measured(tmp_path)
    assert {row["stage"] for row in rows} == {"machine", "consistency"}
    assert not [row for row in rows if "error" in row]
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {row['what']} |" in table for row in rows)
    assert "## machine" in table
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, rows[1:])) + "\n")
    tiny(tmp_path, "machine", "consistency")
    assert sorted(row["what"] for row in measured(tmp_path)) == sorted(row["what"] for row in rows)


def test_a_failure_is_noted_and_measured_again(tmp_path, monkeypatch):
    def failing():
        raise RuntimeError("no more")

    monkeypatch.setitem(STAGES, "machine", lambda _: iter([("bad", failing), ("good", lambda: {"ms": 1})]))
    tiny(tmp_path, "machine")
    assert measured(tmp_path)[0]["error"] == "RuntimeError: no more"
    monkeypatch.setitem(STAGES, "machine", lambda _: iter([("bad", lambda: {"ms": 2}), ("good", failing)]))
    tiny(tmp_path, "machine")
    assert [row.get("ms") for row in measured(tmp_path)] == [None, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(STAGES.keys() - {"published"}))
def test_every_stage_runs(stage, tmp_path):
    tiny(tmp_path, stage, minutes="4")
    rows = measured(tmp_path)
    assert rows
    assert not [row for row in rows if "error" in row]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["crnn_mri", "crunet_mr"])
def test_the_transcriptions_run_on_the_device(network):
    (measure,) = [
        run
        for what, run in published(Bench(torch.device("cuda"), tiny=True))
        if what == f"{network}, size of the slice"
    ]
    with EmulatedGPU():
        (figures,) = measure().values()
    assert float(figures.split()[-1]) < 1e-3
