"""Measure radial reconstruction, next to BART where it is on the path; both sides of every ratio in one run.

``python -m tests.bench.radial`` prints a table, and with the name of a file shows images in it. Nothing here is a test:
a loaded machine would fail it for no fault of the code. Times are of one thread, processor time unless said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import finufft
import numpy as np
import torch
from PIL import Image

from recon_core.api import reconstruct
from recon_core.data import CineSlice, Trajectory
from recon_core.off_grid.nufft import NufftSenseOperator
from recon_core.options import ReconOptions
from recon_core.simulate.radial import SimulatedRadial, simulate_radial
from recon_core.steps.load_off_grid import load_off_grid

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, COILS, FRAMES, SPOKES, ITERATIONS = 192, 8, 10, 20, 12
LARGE_COILS, LARGE_FRAMES = 12, 20
ROUNDS = 3  # of those that are measured by turns; medians count
METHODS = ("zero_filled", "low_rank_sparse", "kt_sense")
LOCAL = (0.02, 0.05)  # weights of locally low rank
DELAYS = (0.5, -0.4, 0.1), (1.5, -1.0, 0.2)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{SIZE} x {SIZE}, {COILS} coils, {FRAMES} frames of {SPOKES} golden-angle spokes, one thread")
    scan = simulate_radial(FRAMES, SIZE, COILS, spokes=SPOKES)
    operators(scan)
    shown = {"truth": scan.image}
    for method in METHODS:
        begin = time.process_time()
        result = reconstruct(scan.kspace, method, **arguments(scan))
        shown[method] = result.image
        show(f"{method}: NRMSE, CPU s", error(result.image, scan.image), time.process_time() - begin)
    if len(sys.argv) > 1:
        picture(Path(sys.argv[1]), shown)
    iterative(scan, LOCAL)
    print(f"{LARGE_COILS} coils, {LARGE_FRAMES} frames")
    large = simulate_radial(LARGE_FRAMES, SIZE, LARGE_COILS, spokes=SPOKES)
    normal_operator(large)
    iterative(large)
    right = error(reconstruct(scan.kspace, "kt_sense", **arguments(scan)).image, scan.image)
    for delays in DELAYS:
        moved = simulate_radial(FRAMES, SIZE, COILS, spokes=SPOKES, delays=delays)
        result = reconstruct(moved.kspace, "kt_sense", **arguments(scan))
        show(f"kt_sense, delays {delays}: NRMSE, over that without", *ratio(error(result.image, scan.image), right))
        print("   ", *(note for note in result.notes if "delays" in note))


def picture(path: Path, shown: dict[str, np.ndarray]) -> None:
    """The first frame by the truth and every method, and below it a line through the heart over time."""
    columns = []
    for image in shown.values():
        frames = np.abs(image)
        frames = frames / np.percentile(frames, 99.5)
        middle = frames[:, frames.shape[1] // 2].repeat(4, axis=0)
        columns.append(np.concatenate([frames[0], middle]))
    pixels = (255 * np.concatenate(columns, axis=1).clip(0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(path, optimize=True)


def operators(scan: SimulatedRadial) -> None:
    """Errors against sums of higher accuracy, and times of a frame."""
    maps = torch.from_numpy(unit(scan.coil_maps))
    positions = torch.from_numpy(scan.trajectory)
    weights = torch.ones(positions.shape[:-1])
    operator, exact = (NufftSenseOperator(maps, positions, weights, **more) for more in ({}, {"tolerance": 1e-6}))
    image = torch.from_numpy(scan.image)
    samples = exact.forward(image)
    for name, run, expected in (
        ("forward", lambda: operator.forward(image), samples),
        ("adjoint", lambda: operator.adjoint(samples), exact.adjoint(samples)),
        ("normal", lambda: operator.normal(image), exact.adjoint(samples)),
    ):
        found = run()
        begin = time.process_time()
        run()
        taken = (time.process_time() - begin) / FRAMES
        show(f"{name}: relative error, CPU ms a frame", float((found - expected).norm() / expected.norm()), 1e3 * taken)


def normal_operator(scan: SimulatedRadial) -> None:
    """Time of A^H A of all frames, next to a transform of finufft forth and back at its fastest."""
    maps = torch.from_numpy(unit(scan.coil_maps))
    positions, image = torch.from_numpy(scan.trajectory), torch.from_numpy(scan.image)
    operator = NufftSenseOperator(maps, positions, torch.ones(positions.shape[:-1]))
    operator.normal(image)  # makes the kernels
    places = [
        tuple(np.ascontiguousarray(2 * np.pi * frame[..., axis]).ravel() for axis in (1, 0))
        for frame in scan.trajectory
    ]
    coarse = {"eps": 1e-3, "upsampfac": 1.25, "nthreads": 1, "showwarn": 0}

    def pair() -> list[np.ndarray]:
        forth = [
            finufft.nufft2d2(*one, (maps * frame).numpy(), isign=-1, **coarse)
            for one, frame in zip(places, image, strict=True)
        ]
        return [
            finufft.nufft2d1(*one, samples, (SIZE, SIZE), isign=1, **coarse)
            for one, samples in zip(places, forth, strict=True)
        ]

    made = {"normal": lambda: operator.normal(image), "finufft, error 1e-3, forth and back": pair}
    for name, taken in by_turns(made)[1].items():
        show(f"{name}, all frames: CPU s, wall s", *taken)


def iterative(scan: SimulatedRadial, local: tuple[float, ...] = ()) -> None:
    """Iterative SENSE of as many iterations, and locally low rank, with the same maps.

    Both solve the same least squares first: samples as they came, no whitening, and the same factors of the samples.
    BART takes all frames at once, or one after the other.
    """
    maps = unit(scan.coil_maps)
    options = {"warm_start": False, "signal_prior": False, "iterations": ITERATIONS, "tolerance": 0.0}
    options |= {**arguments(scan), "noise_covariance": None, "delay_correction": "off"}
    plain = ["-l2", "-r", "0.001", "-i", str(ITERATIONS)]
    made = {"cg_sense": lambda: reconstruct(scan.kspace, "cg_sense", coil_maps=maps, **options).image}
    found = shutil.which("bart") is not None
    if found:
        factors = weights(scan, maps)
        made["BART"] = lambda: bart(scan, maps, plain, factors)
        made["BART frame by frame"] = lambda: np.concatenate(
            [bart(part(scan, one), maps, plain, factors[one]) for one in single_frames(scan)]
        )
    images, times = by_turns(made)
    for name, image in images.items():
        show(f"{name}, {ITERATIONS} iterations: NRMSE, CPU s, wall s", error(image, scan.image), *times[name])
    if not found:
        print("BART is not on the path")
        return
    for name in ("BART", "BART frame by frame"):
        over = (theirs / ours for theirs, ours in zip(times[name], times["cg_sense"], strict=True))
        distance = error(images[name], images["cg_sense"])
        show(f"    {name} over cg_sense: CPU, wall; distance of the images", *over, distance)
    for flags in (plain, *(["-e", "-R", f"L:3:3:{one}", "-i", "50"] for one in local)):
        images, times = by_turns({"BART": partial(bart, scan, maps, flags)}, rounds=1)
        show(f"BART pics {' '.join(flags)} -t: NRMSE, CPU s", error(images["BART"], scan.image), times["BART"][0])


def by_turns(
    made: dict[str, Callable[[], np.ndarray]], rounds: int = ROUNDS
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, float]]]:
    """What each makes, and how long it takes: processor time, that of its processes included, and wall time."""
    images, times = {}, {name: [] for name in made}
    for _ in range(rounds):
        for name, make in made.items():
            before = os.times()
            images[name] = make()
            taken = np.subtract(os.times(), before)
            times[name].append((taken[:4].sum(), taken[4]))
    return images, {name: tuple(np.median(each, axis=0)) for name, each in times.items()}


def single_frames(scan: SimulatedRadial) -> list[slice]:
    return [slice(frame, frame + 1) for frame in range(len(scan.image))]


def part(scan: SimulatedRadial, frames: slice) -> SimulatedRadial:
    chosen = {name: getattr(scan, name)[frames] for name in ("kspace", "trajectory", "image")}
    return replace(scan, **chosen)


def weights(scan: SimulatedRadial, maps: np.ndarray) -> np.ndarray:
    """Factors ``(frame, spoke, sample)`` of the samples in the least squares of `cg_sense`."""
    trajectory = Trajectory(scan.trajectory, (SIZE, SIZE))
    cine = CineSlice(scan.kspace, np.ones(scan.trajectory.shape[:2], np.bool_), maps=maps, trajectory=trajectory)
    options = ReconOptions.of(method="cg_sense", delay_correction="off")
    return load_off_grid(cine, trajectory, options, torch.device("cpu")).weights.numpy()


def bart(scan: SimulatedRadial, maps: np.ndarray, flags: list[str], factors: np.ndarray | None = None) -> np.ndarray:
    """Images of BART; `factors` of the samples are one by default."""
    path = np.zeros((*scan.trajectory.shape[:-1], 3), np.complex64)
    path[..., :2] = SIZE * scan.trajectory
    with tempfile.TemporaryDirectory() as folder:
        frames = len(path)
        write(Path(folder, "path"), path, (3, 2 * SIZE, SPOKES, 1, 1, 1, 1, 1, 1, 1, frames))
        write(Path(folder, "data"), scan.kspace, (1, 2 * SIZE, SPOKES, len(maps), 1, 1, 1, 1, 1, 1, frames))
        write(Path(folder, "maps"), maps, (SIZE, SIZE, 1, len(maps)))
        if factors is not None:
            write(Path(folder, "weights"), factors, (1, 2 * SIZE, SPOKES, 1, 1, 1, 1, 1, 1, 1, frames))
            flags = ["-p", "weights", *flags]
        command = ["bart", "pics", "-S", *flags, "-t", "path", "data", "maps", "out"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return np.fromfile(Path(folder, "out.cfl"), np.complex64).reshape(frames, SIZE, SIZE)


def write(path: Path, array: np.ndarray, dims: tuple[int, ...]) -> None:
    """A file of BART; its first axis is the one that runs fastest."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")
    np.ascontiguousarray(array, np.complex64).tofile(path.with_suffix(".cfl"))


def arguments(scan: SimulatedRadial) -> dict[str, object]:
    return {
        "trajectory": scan.trajectory,
        "matrix": (SIZE, SIZE),
        "noise_covariance": scan.noise_covariance,
        "fallback": "none",
    }


def unit(maps: np.ndarray) -> np.ndarray:
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)


def error(image: np.ndarray, truth: np.ndarray) -> float:
    """NRMSE of magnitudes, whatever the scale."""
    image, truth = np.abs(image), np.abs(truth)
    scale = (image * truth).sum() / np.square(image).sum()
    return float(np.linalg.norm(scale * image - truth) / np.linalg.norm(truth))


def ratio(value: float, other: float) -> tuple[float, float]:
    return value, value / other


def show(name: str, *values: float) -> None:
    print(f"{name:72s}", *(f"{value:10.4g}" for value in values), flush=True)


if __name__ == "__main__":
    main()
