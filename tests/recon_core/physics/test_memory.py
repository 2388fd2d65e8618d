import os
from pathlib import Path

import pytest
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.options import CGSenseOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.memory import available_bytes, predicted_bytes
from tests.recon_core.support import peak_bytes, run

SHAPES = [
    # (frame, coil, ky, x), maps per frame, regular undersampling
    ((12, 10, 64, 96), False, 0),
    ((5, 4, 130, 120), True, 0),
    ((20, 8, 96, 64), False, 4),
    ((2, 30, 128, 128), False, 0),
]


def arrays(shape, per_frame, folds, device="cpu"):
    n_frames, _, n_y, _ = shape
    maps = torch.randn(*shape if per_frame else shape[1:], dtype=torch.complex64, device=device)
    measured = torch.randn(shape, dtype=torch.complex64, device=device)
    mask = torch.zeros(n_frames, n_y, dtype=torch.bool, device=device)
    mask[:, :: folds or 3] = True
    mask[:, 1] = not folds
    return measured, maps, mask


def work(stage, measured, maps, mask):
    if stage == "sense":
        reference = measured[0], mask[0]  # none of the work: the engine has it beforehand
        return run(CGSense(CGSenseOptions(iterations=3)), measured, maps, mask, reference)
    image = torch.zeros_like(measured[:, 0])
    consistency = DataConsistency(maps, mask, measured)
    return consistency.hard(image) if stage == "consistency" else consistency.solve(image, 0.1, 3)


@pytest.mark.parametrize(
    ("stage", "shape", "per_frame", "folds"),
    [
        (stage, *case)
        for stage in ("sense", "consistency", "consistency_solve")
        for case in SHAPES
        if not (stage == "sense" and case[1])  # its maps hold for all frames
    ],
)
def test_prediction_is_near_the_measured_peak(stage, shape, per_frame, folds):
    inputs = arrays(shape, per_frame, folds)
    extra = 0 if stage == "sense" else inputs[0][:, 0].numel() * 8  # the image is made inside
    with torch.inference_mode():
        measured = peak_bytes(lambda: work(stage, *inputs)) - extra
    predicted = predicted_bytes(stage, shape, maps_per_frame=per_frame, folds=folds)
    assert 0.75 * measured < predicted < 1.25 * measured


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stage", ["sense", "consistency", "consistency_solve"])
def test_prediction_is_near_the_measured_peak_on_the_gpu(stage):
    shape = (25, 20, 208, 448)
    inputs = arrays(shape, False, 0, "cuda")
    with torch.inference_mode():
        work(stage, *inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(stage, *inputs)
        measured = torch.cuda.max_memory_allocated() - before
    predicted = predicted_bytes(stage, shape, device="cuda")
    assert 0.75 * measured < predicted < 1.25 * measured


def test_available_memory_is_what_the_system_says():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = available_bytes(torch.device("cpu"))
    assert free is None or 0 < free <= total


def test_available_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "MemTotal: 5 kB\n")
    assert available_bytes(torch.device("cpu")) is None
