"""Measure data consistency against its plain form: ``python -m tests.bench.consistency``.

On the CPU: one hard data consistency by 2-D transforms with all shifts, and by the fast path. On a GPU: the torch and
the CuPy implementation, with the bytes that each must move and the share of the memory bandwidth that it reaches.
Prints a markdown table. Nothing here is a test: a loaded machine would fail it for no fault of the code.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it

# isort: split
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.errors import ModelError
from recon_core.options import CGSenseOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.kernels import choose_kernels
from recon_core.physics.sense import SenseOperator
from tests.recon_core.support import run

if TYPE_CHECKING:
    from collections.abc import Callable

CPU_SHAPE = (12, 10, 204, 448)
GPU_SHAPE = (25, 20, 208, 448)  # (frame, coil, ky, x)


def main() -> None:
    rows = []
    devices = [("cpu", CPU_SHAPE)] + ([("cuda", GPU_SHAPE)] if torch.cuda.is_available() else [])
    with torch.inference_mode():
        for device, shape in devices:
            rows += measure(device, shape)
    header = ("device", "work", "mask", "ms", "against plain", "GB moved", "share of bandwidth")
    rows = [header, tuple("-" * len(name) for name in header), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    print(
        "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows)
    )
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads; (frame, coil, ky, x): {devices}")


def measure(device: str, shape: tuple[int, int, int, int]) -> list[tuple[str, ...]]:
    """Rows of the table for one device."""
    n_frames, _, n_y, n_x = shape
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape[1:], dtype=torch.complex64, generator=generator)
    maps = (maps / torch.linalg.vector_norm(maps, dim=0)).to(device)
    kspace = torch.randn(shape, dtype=torch.complex64, generator=generator).to(device)
    image = torch.randn(n_frames, n_y, n_x, dtype=torch.complex64, generator=generator).to(device)
    layout = image.mT.contiguous().mT
    random = (torch.rand(n_frames, n_y, generator=generator) < 0.25).to(device)
    line = torch.arange(n_y) - torch.arange(n_frames)[:, None]
    regular = (line % 4 == 0).to(device)
    hybrid = ifft(kspace, (-1,))
    bandwidth = copy_bandwidth(device)

    rows: list[tuple[str, ...]] = []
    coils, images, set_bytes = kspace.numel() * 8, image.numel() * 8, maps.numel() * 8
    plain = seconds(lambda: plain_hard(maps, random, kspace, image), device)

    def row(work: str, mask: str, taken: float, moved: float | None = None, baseline: float | None = plain) -> None:
        share = "" if moved is None else f"{moved / taken / bandwidth:.0%}"
        ratio = "" if baseline is None else f"{baseline / taken:.1f}x"
        rows.append((device, work, mask, f"{taken * 1e3:.2f}", ratio, f"{moved / 1e9:.2f}" if moved else "", share))

    row("hard, plain 2-D", "random", plain)
    for implementation in ("torch", "cupy"):
        try:
            choose_kernels(implementation, torch.device(device))
        except ModelError:
            continue
        for name, mask in (("random", random), ("regular", regular)):
            tested = DataConsistency(maps, mask, hybrid, implementation=implementation)
            row(f"hard, {implementation}", name, seconds(lambda tested=tested: tested.hard(image), device))
        operator = SenseOperator(maps, random, implementation=implementation)
        # Coil images: written by the expansion, read and written by both transforms, masked (CuPy writes the excluded
        # three quarters only), and reduced (torch multiplies in place first).
        passes = 1 + 4 + (2 + 3 if implementation == "torch" else 0.75 + 1)
        moved = passes * coils + 2 * set_bytes + 2 * images
        taken = seconds(lambda operator=operator: operator.normal(layout), device)
        row(f"A^H A, {implementation}", "random", taken, moved, None)
        if device == "cuda":
            for mebibytes in (32, 512):
                operator = SenseOperator(maps, random, implementation=implementation, workspace_bytes=mebibytes << 20)
                taken = seconds(lambda operator=operator: operator.normal(layout), device)
                row(f"A^H A, {implementation}, workspace {mebibytes} MiB", "random", taken, moved, None)
    method = CGSense(CGSenseOptions(iterations=30, regularization=0.01, tolerance=0.0, warm_start=False))
    for name, mask in (("random", random), ("regular", regular)):
        taken = seconds(lambda mask=mask: run(method, hybrid, maps, mask), device, repeats=3)
        row("cg_sense, 30 iterations, per frame", name, taken / n_frames, None, None)
    return rows


def plain_hard(maps: torch.Tensor, mask: torch.Tensor, kspace: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The definition."""
    predicted = fft(maps * image[:, None], (-2, -1))
    replaced = torch.where(mask[:, None, :, None], kspace, predicted)
    return (maps.conj() * ifft(replaced, (-2, -1))).sum(1)


def seconds(function: Callable[[], torch.Tensor], device: str, repeats: int = 7) -> float:
    """Median time of a call, after one for warming up."""
    function()
    taken = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
