"""Methods that reconstruct a series, side by side on the same k-space and coil maps: error and time.

``python -m tests.bench.series`` prints a table. With BART on the path its ``pics`` takes part, with locally low rank,
and with total variation and wavelets along time, each with the best of several weights, which no user could know.
Nothing here is a test: a loaded machine would fail it for no fault of the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from recon_core.api import reconstruct
from recon_core.metrics.scores import measure, scaled
from recon_core.simulate.kspace import simulate_cine

SHAPE = {"frames": 24, "coils": 10, "matrix": (156, 192)}
PATTERNS = {
    "every 4th line + 24 ACS": {"sampling": "uniform", "acceleration": 4, "acs_lines": 24},
    "every 6th line, shifting": {"sampling": "interleaved", "acceleration": 6, "acs_lines": 0},
    "variable density, 1 of 8": {"sampling": "variable_density", "acceleration": 8, "acs_lines": 4},
}
METHODS = ("zero_filled", "cg_sense", "low_rank_sparse", "kt_sense")
REGULARISATIONS = {"locally low rank": "L:3:3:{}", "total variation": "T:1024:0:{}", "wavelets": "W:1024:0:{}"}
WEIGHTS = (0.001, 0.005, 0.02)
TIME_AXIS = 10  # of BART


def main() -> None:
    print(f"{SHAPE['frames']} frames, {SHAPE['coils']} coils, {SHAPE['matrix']}, {torch.get_num_threads()} threads\n")
    print("| pattern | method | PSNR where it moves / whole, dB | s |\n|---|---|---|---|")
    for pattern, plan in PATTERNS.items():
        scan = simulate_cine(**SHAPE, **plan, seed=1)
        for method in METHODS:
            report(pattern, method, *ours(scan, method))
        for name, form in REGULARISATIONS.items() if shutil.which("bart") else ():
            tried = [(*barts(scan, form.format(weight)), f" {weight}") for weight in WEIGHTS]
            image, seconds, weight = max(tried, key=lambda one: scores(one[0], scan.image)["psnr"])
            report(pattern, f"bart pics, {name},{weight}", image, scan.image, seconds)


def report(pattern: str, method: str, image: np.ndarray, truth: np.ndarray, seconds: float) -> None:
    found = scores(image, truth)
    print(f"| {pattern} | {method} | {found['dynamic_psnr']:.1f} / {found['psnr']:.1f} | {seconds:.2f} |", flush=True)


def scores(image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return measure(scaled([np.abs(image)], truth[None]), [truth])


def ours(scan, method: str):
    """Image as of the receive coils, truth, and seconds without those for the coil maps; the better of two runs."""
    options = {"mask": scan.mask, "coil_maps": scan.coil_maps, "noise_covariance": scan.noise_covariance}
    runs = [reconstruct(scan.kspace, method, fallback="none", **options) for _ in range(2)]
    return runs[0].image, scan.image, min(run.seconds["reconstruct"] for run in runs)


def barts(scan, regularisation: str):
    """Image and seconds of ``bart pics`` on whitened data with the same maps of unit norm."""
    whitening = np.linalg.inv(np.linalg.cholesky(scan.noise_covariance))
    kspace = np.einsum("ij,fjyx->fiyx", whitening, scan.kspace)
    maps = np.einsum("ij,jyx->iyx", whitening, scan.coil_maps)
    norm = np.linalg.norm(maps, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_cfl(path / "maps", (maps / norm)[:, None])
        write_cfl(path / "kspace", kspace.reshape(len(kspace), *[1] * (TIME_AXIS - 4), len(maps), 1, *norm.shape))
        command = ["bart", "pics", "-S", "-d0", "-i", "40", "-R", regularisation, "kspace", "maps", "image"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        started = time.perf_counter()
        subprocess.run(command, cwd=path, env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        image = np.fromfile(path / "image.cfl", np.complex64).reshape(len(kspace), *norm.shape)
    return image * np.linalg.norm(scan.coil_maps, axis=0) / norm, seconds


def write_cfl(path: Path, array: np.ndarray) -> None:
    """Write ``(..., coil, z, y, x)`` as BART reads it, first axis last."""
    sizes = [*array.shape[::-1], *[1] * (16 - array.ndim)]
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))}\n")
    np.ascontiguousarray(array, np.complex64).tofile(path.with_suffix(".cfl"))


if __name__ == "__main__":
    main()
