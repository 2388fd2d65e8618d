"""Measure the classical methods against their alternatives, both sides of every ratio in one run.

``python -m tests.bench.classical`` prints a table; with BART on the path it takes part. Nothing here is a test: a
loaded machine would fail it for no fault of the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.grappa import grappa
from recon_core.classical.low_rank_sparse import low_rank_sparse
from recon_core.coils.calibration import time_average
from recon_core.options import CGSenseOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.sense import SenseOperator
from recon_core.simulate.sampling import interleaved_mask, variable_density_mask
from tests.recon_core.support import run

FRAMES, COILS, LINES, SAMPLES, STEP = 12, 10, 204, 448, 4
ITERATIONS, WEIGHT, PASSES, REPEATS = 30, 0.01, 5, 3


def main() -> None:
    rows = []
    with torch.inference_mode():
        patterns = {
            "interleaved": interleaved_mask(FRAMES, LINES, STEP),
            "variable density": variable_density_mask(FRAMES, LINES, STEP, 16),
        }
        for pattern, mask in patterns.items():
            data = scan(torch.tensor(mask))
            for measure in (iterative_sense, separation, line_filling):
                # GRAPPA takes regular lines alone.
                if measure is not line_filling or pattern == "interleaved":
                    rows += [(f"{name}, {pattern}", value) for name, value in measure(*data)]
                    print(f"| {rows[-1][0]} | {rows[-1][1]} |", file=sys.stderr)
    rows.insert(0, (f"{FRAMES} frames x {COILS} coils x {SAMPLES} x {LINES}, R = {STEP}", f"{threads()} CPU threads"))
    width = max(len(name) for name, _ in rows)
    rows.insert(1, ("-" * width, "---"))
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in rows))


def threads() -> int:
    return torch.get_num_threads()


def scan(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K-space, unit-norm maps and mask of a disc that pulsates, with noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, LINES), torch.linspace(-1, 1, SAMPLES), indexing="ij")
    angle = 2 * torch.pi * torch.arange(COILS)[:, None, None] / COILS
    maps = torch.exp(-((y - 1.3 * angle.sin()) ** 2) - (x - 1.3 * angle.cos()) ** 2 + 1j * (x * angle.sin() + y))
    maps = (maps / torch.linalg.vector_norm(maps, dim=0)).to(torch.complex64)
    radius = 0.3 + 0.05 * torch.sin(2 * torch.pi * torch.arange(FRAMES) / FRAMES)[:, None, None]
    image = ((y**2 + x**2 < 0.7).float() + (y**2 + x**2 < radius**2).float()) * (1 + 0.2 * torch.sin(25 * x * y))
    kspace = fft(maps * image[:, None], (-2, -1))
    noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return (kspace + 0.01 * noise) * mask[:, None, :, None], maps, mask


# --- cg_sense ---------------------------------------------------------------------------------------------------------


def iterative_sense(kspace: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> list[tuple[str, str]]:
    """From k-space to images, the transform along the readout included; BART gets one frame at a time."""
    method = CGSense(CGSenseOptions(iterations=ITERATIONS, regularization=WEIGHT, tolerance=0.0, warm_start=False))

    def ours() -> torch.Tensor:
        return run(method, ifft(kspace, (-1,)), maps, mask)

    name = f"cg_sense, {ITERATIONS} iterations, per frame"
    if shutil.which("bart") is None:
        ((seconds, _),) = best(ours)
        return [(name, f"{1e3 * seconds / FRAMES:.0f} ms; BART is not installed")]
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(Path(folder), kspace, maps)
        (seconds, image), (theirs, reference), (start, _) = best(ours, bart.images, bart.nothing)
    theirs -= FRAMES * start
    error = float((image - reference).norm() / reference.norm())
    return [
        (name, f"{1e3 * seconds / FRAMES:.0f} ms; BART pics {1e3 * theirs / FRAMES:.0f} ms without its start"),
        ("cg_sense, ratio to BART / difference", f"{theirs / seconds:.1f}x / {error:.0e}"),
    ]


class Bart:
    """The same scan for BART, in files."""

    def __init__(self, folder: Path, kspace: torch.Tensor, maps: torch.Tensor) -> None:
        self._folder = folder
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads())}
        write_cfl(folder / "maps", maps.numpy())
        for frame, lines in enumerate(kspace.numpy()):
            write_cfl(folder / f"data{frame}", lines)

    def images(self) -> torch.Tensor:
        result = []
        for frame in range(FRAMES):
            names = f"data{frame}", "maps", f"image{frame}"
            self._run("pics", "-l2", "-r", str(WEIGHT), "-i", str(ITERATIONS), "-S", *names)
            result.append(np.fromfile(self._folder / f"image{frame}.cfl", np.complex64).reshape(LINES, SAMPLES))
        return torch.tensor(np.stack(result))

    def nothing(self) -> None:
        self._run("version")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["bart", *arguments], cwd=self._folder, env=self._environment, check=True, capture_output=True)


def write_cfl(path: Path, array: np.ndarray) -> None:
    """Write ``(coil, y, x)``; BART's first dimension, the readout, varies fastest, and coils are the fourth."""
    n_coils, n_y, n_x = array.shape
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{n_x} {n_y} 1 {n_coils} " + "1 " * 12 + "\n")
    np.ascontiguousarray(array, np.complex64).tofile(path.with_suffix(".cfl"))


# --- low_rank_sparse --------------------------------------------------------------------------------------------------


def separation(kspace: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> list[tuple[str, str]]:
    def ours() -> torch.Tensor:
        operator = SenseOperator(maps, mask)
        right_side = operator.adjoint(ifft(kspace, (-1,)))
        low_rank, sparse, _ = low_rank_sparse(operator, right_side, iterations=PASSES - 1, tolerance=0.0)
        return low_rank + sparse

    (seconds, image), (theirs, reference) = best(ours, lambda: plain_low_rank_sparse(kspace, maps, mask, PASSES))
    error = float((image - reference).norm() / reference.norm())
    return [
        ("low_rank_sparse, per pass", f"{seconds / PASSES:.2f} s; plain {theirs / PASSES:.2f} s"),
        ("low_rank_sparse, ratio to plain / difference", f"{theirs / seconds:.1f}x / {error:.0e}"),
    ]


def plain_low_rank_sparse(kspace: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor, passes: int) -> torch.Tensor:
    """The same iteration as it is written in the paper: two-dimensional transforms, and the whole decomposition."""
    lines = mask[:, None, :, None]

    def forward(image: torch.Tensor) -> torch.Tensor:
        return lines * fft(maps * image[:, None], (-2, -1))

    def adjoint(data: torch.Tensor) -> torch.Tensor:
        return (maps.conj() * ifft(lines * data, (-2, -1))).sum(1)

    series = adjoint(kspace)
    threshold = 0.01 * series.abs().max()
    low_rank, sparse = series, torch.zeros_like(series)
    for _ in range(passes):
        left, singular, right = torch.linalg.svd((series - sparse).flatten(1).T, full_matrices=False)
        spectrum = torch.fft.fft(series - low_rank, dim=0, norm="ortho")
        shrunk = (singular - 0.01 * singular[0]).clamp(min=0)
        low_rank = ((left * shrunk) @ right).T.reshape(series.shape)
        magnitude = spectrum.abs()
        spectrum = spectrum * (1 - threshold / magnitude.clamp(min=1e-30)).clamp(min=0)
        sparse = torch.fft.ifft(spectrum, dim=0, norm="ortho")
        series = low_rank + sparse - adjoint(forward(low_rank + sparse) - kspace)
    return low_rank + sparse


# --- grappa -----------------------------------------------------------------------------------------------------------


def line_filling(kspace: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> list[tuple[str, str]]:
    def ours() -> None:
        hybrid = ifft(kspace, (-1,))
        grappa(hybrid, mask, *time_average(hybrid, mask))

    ((seconds, _),) = best(ours)
    return [("grappa 4 x 5, calibration on all lines and filling of all frames", f"{seconds:.2f} s")]


def best(*functions):
    """Shortest wall time of each, and what it gives; in turns, so that the mood of the machine meets all alike."""
    times = [[] for _ in functions]
    for _ in range(REPEATS):
        results = []
        for function, seconds in zip(functions, times, strict=True):
            started = time.perf_counter()
            results.append(function())
            seconds.append(time.perf_counter() - started)
    return [(min(seconds), result) for seconds, result in zip(times, results, strict=True)]


if __name__ == "__main__":
    main()
