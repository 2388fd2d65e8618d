"""Measure whether networks add to ``kt_sense`` on scans that they were not trained for, and that no training has seen.

    python -m tests.bench.radial_networks FOLDER spokes|spirals|points [NETWORK ...] [--scans 40] [--data DIR]

``spokes``: golden-angle scans off the grid, 8 coils, 13 to 40 spokes a frame; data consistency goes through the
non-uniform transform. ``spirals``: such scans with 4 to 16 arms a frame, which turn by the golden angle, 2 to 8 times
undersampled. ``points``: scans drawn as in training, with masks of points next to spokes. Every network starts
from the image of ``kt_sense`` and is weighed against it, as the packaged weights are (`given`) and as would be found
from the other three quarters of these scans (`found`). What is found of every scan goes to FOLDER at once, and a run
goes on where another was stopped. The figures of a network: scans on which it is sent, median gain where it moves /
whole, the least of either, and scans that are worse by more than 0.2 dB.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.data import CineSlice, HybridSlice, Receiver, Trajectory
from recon_core.inference.start import with_start
from recon_core.inference.windows import over_windows
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.options import ReconOptions
from recon_core.simulate.coils import coil_maps
from recon_core.simulate.radial import measure as sampled
from recon_core.simulate.radial import spoke_angles
from recon_core.steps.load import load
from recon_core.training.library import Library, read_library
from recon_core.training.measurements import SNR, draw_points, measure
from recon_core.training.series import draw_series
from recon_core.training.survey import REFERENCE, Finding, Gain, compare, gains, weigh
from recon_core.trust.weighing import LEAST_SHARE, Beyond
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import list_weights
from tests.bench.findings import keep, read

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = ("cinenet", "crunet_mr", "unrolled_resnet3d", "unet3d_mr", "crnn_mri")
SEED = 950_000  # far from those of trainings and surveys
COILS, SIZES, SPOKES, FRAMES = 8, (96, 112), (13, 40), (8, 10, 12)
ARMS, FEWER = (4, 16), (2.0, 8.0)  # of a spiral: arms of a frame, and how many times fewer turns than complete
WORSE = 0.2  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=tuple(DRAWS))
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    library = Library() if options.data is None else read_library(options.data, "held out")
    options.folder.mkdir(parents=True, exist_ok=True)
    entries = {entry.method: entry for entry in list_weights().values() if entry.weighing}
    findings: dict[str, list[Finding]] = {name: [] for name in options.networks}
    networks = {name: load_network(entries[name], torch.device("cpu")) for name in options.networks}
    for number in range(options.scans):
        look(options, library, networks, number, findings)
    print("| network | weighing | sent | median, moves / whole | least of either | worse | of all |")
    print("|---|---|---|---|---|---|---|")
    for name, of_scans in findings.items():
        print(row(name, "given", gains(of_scans, entries[name].weighing)))
        print(row(name, "found", weigh(of_scans).judged), flush=True)


def look(options, library: Library, networks, number: int, findings: dict[str, list[Finding]]) -> None:
    """Add the findings of one scan, those of an earlier run as they are."""
    started = None
    for name, network in networks.items():
        path = options.folder / f"{options.kind}-{number}-{name}.pt"
        if not path.exists():
            with torch.inference_mode():
                if started is None:
                    data, target = DRAWS[options.kind](number, library)
                    begin = time.process_time()
                    started = with_start(data, REFERENCE)
                    print(number, tuple(data.hybrid.shape), f"kt_sense {time.process_time() - begin:.1f} s", flush=True)
                begin = time.process_time()
                image = reconstruct(network, started)
                finding = compare(started, image, target)
                beyond = Beyond.of(started.sampling(started.noise_variance**-0.5))  # the peak is one
            keep(dataclasses.replace(finding, beyond=beyond), path)
            print("  ", name, f"{time.process_time() - begin:.1f} s", *alone(finding), flush=True)
        findings[name].append(read(path))


def reconstruct(network, data: HybridSlice) -> torch.Tensor:
    """The image of a network by itself, in windows where it takes a fixed number of frames."""
    frames = len(data.hybrid)
    window = min(max(frames, network.minimum_frames), network.maximum_frames or frames)

    def of_window(chosen: torch.Tensor) -> torch.Tensor:
        return network.reconstruct(data.select_started(chosen))

    return over_windows(of_window, frames, window, data.hybrid.device)


def spokes(number: int, library: Library) -> tuple[HybridSlice, torch.Tensor]:
    """A golden-angle scan, and its truth."""

    def choose(rng: np.random.Generator, frames: int, size: int) -> Callable[[], np.ndarray]:
        count = round(log_uniform(rng, SPOKES))

        def places() -> np.ndarray:
            law = str(rng.choice(("golden", "tiny_golden")))
            return spoke_positions(spoke_angles(law, frames, count), 2 * size, size, (size, size))

        return places

    return off_grid(number, library, choose)


def spirals(number: int, library: Library) -> tuple[HybridSlice, torch.Tensor]:
    """A scan with spirals of constant speed from the centre to the edge of k-space, and its truth."""

    def choose(rng: np.random.Generator, frames: int, size: int) -> Callable[[], np.ndarray]:
        arms = round(log_uniform(rng, ARMS))
        turns = size / 2 / arms / log_uniform(rng, FEWER)
        samples = round(2 * np.pi * turns * size / 2) + size  # a bit closer than the grid
        way = np.sqrt(np.linspace(0, 1, samples))  # of constant speed where the radius grows with the angle
        angle = 2 * np.pi * turns * way + spoke_angles("golden", frames, arms)[..., None] * 2
        return lambda: (way[:, None] / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).astype(np.float32)

    return off_grid(number, library, choose)


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draw between two bounds, small values as often as large ones."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def off_grid(
    number: int, library: Library, choose: Callable[[np.random.Generator, int, int], Callable[[], np.ndarray]]
) -> tuple[HybridSlice, torch.Tensor]:
    """A scan of a series that is drawn at twice the resolution, and its truth; the average has a peak of one."""
    rng = np.random.default_rng([SEED, number])
    size = 2 * int(rng.integers(SIZES[0] // 2, SIZES[1] // 2 + 1))
    frames = int(rng.choice(FRAMES))
    places_of = choose(rng, frames, size)
    snr = log_uniform(rng, SNR)
    places = places_of()
    series = draw_series((SEED, number), library, frames=frames, matrix=(2 * size, 2 * size)).image
    maps = coil_maps(COILS, (2 * size, 2 * size), (360.0, 360.0), seed=number)
    maps /= np.median(np.linalg.norm(maps, axis=0))
    line = (np.arange(size) - size // 2) / size
    grid = np.stack(np.meshgrid(line, line), axis=-1).astype(np.float32)
    disk = np.linalg.norm(grid, axis=-1) <= 0.5
    kspace = np.empty((frames, COILS, *places.shape[1:3]), np.complex64)
    complete = np.empty((frames, COILS, size, size), np.complex64)
    for frame, image in enumerate(series):
        kspace[frame] = sampled(maps * image, places[frame])
        complete[frame] = sampled(maps * image, grid) * disk
    deviation = 1 / snr / 2**0.5  # of a part of a complex sample
    noise = rng.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0]
    cine = CineSlice(
        kspace / np.float32(deviation) + noise,
        np.ones(places.shape[:2], bool),
        receiver=Receiver(whitened=True),
        trajectory=Trajectory(places, (size, size)),
    )
    data = load(cine, ReconOptions(method=REFERENCE), torch.device("cpu"))
    peak = float((data.maps.conj() * data.average_images()).sum(0).abs().max())
    scaled = {"hybrid": data.hybrid / peak, "reference": data.reference / peak}
    scaled["noise_variance"] = data.noise_variance / peak**2
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(complete, axes=axes), norm="ortho"), axes=axes)
    target = (data.maps.conj() * torch.from_numpy(images.astype(np.complex64))).sum(1) / (peak * deviation)
    return dataclasses.replace(data, **scaled), target


def points(number: int, library: Library) -> tuple[HybridSlice, torch.Tensor]:
    """A scan with a mask of points, turning from frame to frame or not, and its truth."""
    rng = np.random.default_rng([SEED, number])
    matrix = tuple(2 * int(rng.integers(SIZES[0] // 2, SIZES[1] // 2 + 1)) for _ in range(2))
    frames = int(rng.choice(FRAMES))
    series = draw_series((SEED, number), library, frames=frames, matrix=matrix)
    scan = measure((SEED, number), series, mask=draw_points(rng, frames, matrix), n_coils=COILS)
    return scan.slice(), scan.target


DRAWS = {"spokes": spokes, "spirals": spirals, "points": points}


def alone(finding: Finding) -> tuple[str, str]:
    """What the network is better by itself, in dB: whole, and where it moves."""
    left = finding.error - 2 * finding.agreement + finding.change
    regions = torch.ones_like(finding.moving), finding.moving
    return tuple(f"{-10 * float(torch.log10(left[one].sum() / finding.error[one].sum())):+.2f}" for one in regions)


def row(name: str, weighing: str, judged: list[Gain]) -> str:
    """A row of the table."""
    served = [each for each in judged if each.share >= LEAST_SHARE]
    if not served:
        return f"| {name} | {weighing} | 0 of {len(judged)} | | | | |"
    whole, moving = (np.array([getattr(each, part) for each in served]) for part in ("whole", "moving"))
    least = np.minimum(whole, moving)
    sent, worse = f"{len(served)} of {len(judged)}", int((least < -WORSE).sum())
    figures = f"{np.median(moving):+.2f} / {np.median(whole):+.2f} dB | {least.min():+.2f} dB | {worse}"
    return f"| {name} | {weighing} | {sent} | {figures} | {100 * worse / len(judged):.1f} % |"


if __name__ == "__main__":
    main()
