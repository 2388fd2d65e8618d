"""Scans for the evaluation that no training may use: simulated subjects with separate seeds, and one patient.

Everything is drawn finer than it is measured, so that a reconstruction never meets the grid on which the object was
made. Measured data are as in a stream: noise-whitened, with the colouring of the coils.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from recon_core.ct.geometry import SliceGeometry, resample, window
from recon_core.ct.settings import CtSettings
from recon_core.ct.volume import CtVolume
from recon_core.data import CineSlice, Receiver
from recon_core.errors import ResourceError
from recon_core.metrics.measures import dynamic_region
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.coils import coil_maps, noise_covariance
from recon_core.simulate.phantom import BeatingThorax, pixel_positions
from recon_core.simulate.sampling import sampling_mask
from recon_core.training.library import HELD_OUT, Library, read_library
from recon_core.training.series import draw_series, second_contrast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from recon_core.training.series import Kind

#: First number of every seed of the evaluation; training draws its seeds below.
SEED = 2**31
PARTS = {
    "cine": "Periodic short-axis cine",
    "view": "Other views, motion of the whole field, free breathing",
    "realtime": "Real-time series without a period",
}

_N_COILS = 10
_N_FRAMES = 24
_MATRIX = (112, 128)  # (y, x) as measured
_FINE = 2  # times finer as drawn
_FIELD_OF_VIEW = (294.0, 336.0)  # mm
_BODY = (236.0, 326.0)  # mm, what lies within the coils, and so the size of pictures that the body fills
_SNR = 50.0  # bright part of the heart in a full frame over the deviation of the noise, real or imaginary, of a coil
_SUBJECTS = ((0.0, 0.6), (-18.0, 0.35), (16.0, 0.5))  # mm from mid-ventricle, ejection fraction
# Seeds of the other parts, chosen for what they show: two hearts and shapes without anatomy; the patient's.
_DRAWN: dict[Kind, tuple[int, ...]] = {"view": (5, 7, 2), "realtime": (3, 11, 0)}
_DRAWN_OF_PATIENT: dict[Kind, int] = {"view": 12, "realtime": 3}
_PATIENT_SLICES = (6, 2)  # 4 and 5 are in the semi-real scans


@dataclass(frozen=True)
class Condition:
    """How a scan is undersampled."""

    title: str
    """What to call it."""
    sampling: str
    acceleration: int
    acs_lines: int
    """`sampling`, `acceleration`, `acs_lines`: As `recon_core.simulate.sampling.sampling_mask` takes them."""


CONDITIONS = {
    "uniform_4": Condition("every 4th line + 24 ACS", "uniform", 4, 24),
    "uniform_8": Condition("every 8th line + 24 ACS", "uniform", 8, 24),
    "uniform_12": Condition("every 12th line + 24 ACS", "uniform", 12, 24),
    "interleaved_8": Condition("every 8th line, shifting, no ACS", "interleaved", 8, 0),
    "random_8": Condition("variable density, 1 of 8 with 4 central lines", "variable_density", 8, 4),
    "random_24": Condition("variable density, 1 of 24 with 2 central lines", "variable_density", 24, 2),
}


@dataclass(frozen=True)
class LoadedScan:
    """A scan in memory."""

    truth: NDArray[np.complex64]
    """``(slice, frame, y, x)`` complex64: the noise-free images of the receive coils, combined as their root sum of
    squares would be, ``sum(conj(m) c) / |m|``."""
    measured: Callable[[str], list[CineSlice]]
    """Gives, for the name of a condition, what a scanner would have measured of every slice."""
    aspect: float
    """Width over height of an image in mm."""
    frame_seconds: float
    """Time from frame to frame for a loop."""
    placed: Callable[[float], list[tuple[NDArray[np.float32], NDArray[np.bool_]]]] | None = None
    """Brings a CT to the grid of every slice, as image and cover of a `CtImage`, from as many mm towards larger x as it
    is to lie off; None where there is no CT."""
    maps: NDArray[np.complex64] | None = None
    """``(slice, coil, y, x)`` complex64: the true maps of the receive coils before whitening; None is not known."""


@dataclass(frozen=True)
class HeldOutScan:
    """A scan that is made when it is needed."""

    part: str
    """Which part of the evaluation it belongs to, such as one of `PARTS`."""
    name: str
    """What to call it within its part."""
    conditions: tuple[str, ...]
    """Names that `LoadedScan.measured` takes."""
    load: Callable[[], LoadedScan]
    """Makes it."""
    source: str = ""
    """Digest of the file that it is made of; empty for a simulated one."""


def held_out_scans(data: Path | None = None) -> list[HeldOutScan]:
    """List the scans of the evaluation; none is made yet.

    Parameters
    ----------
    data
        Folder with ``scd_cine`` of the Sunnybrook Cardiac Data, of which the held-out patient joins; see
        `recon_core.training.library.read_library`. None leaves the simulated scans.

    Returns
    -------
    list of HeldOutScan
        Part by part; the same under the same name whatever else there is.

    Raises
    ------
    ResourceError
        If the folder has no images of that patient.
    """
    conditions = tuple(CONDITIONS)
    scans = [
        HeldOutScan("cine", f"subject {number + 1}", conditions, partial(_thorax, number))
        for number in range(len(_SUBJECTS))
    ]
    scans += [
        HeldOutScan(kind, f"series {i + 1}", conditions, partial(_drawn, kind, number, None))
        for kind, numbers in _DRAWN.items()
        for i, number in enumerate(numbers)
    ]
    if data is not None:
        path = data / "scd_cine" / f"{HELD_OUT[0]}.npz"
        source = _digest(path)
        scans += [
            HeldOutScan("cine", f"patient slice {number}", conditions, partial(_patient, path, number), source)
            for number in _PATIENT_SLICES
        ]
        scans += [
            HeldOutScan(kind, "patient", conditions, partial(_drawn, kind, number, data), source)
            for kind, number in _DRAWN_OF_PATIENT.items()
        ]
    return sorted(scans, key=lambda scan: [*PARTS].index(scan.part))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ResourceError(
            f"cannot read the held-out patient {path}: {error.strerror}; give a folder with scd_cine, or none"
        ) from error


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _thorax(number: int) -> LoadedScan:
    """One beat of a simulated subject."""
    offset, ejection_fraction = _SUBJECTS[number]
    ny, nx = (_FINE * size for size in _MATRIX)
    thorax = BeatingThorax(
        pixel_positions(ny, _FIELD_OF_VIEW[0]),
        pixel_positions(nx, _FIELD_OF_VIEW[1]),
        slice_offset_mm=offset,
        ejection_fraction=ejection_fraction,
        seed=SEED + number,
    )
    frames = np.stack([thorax.frame(frame / _N_FRAMES) for frame in range(_N_FRAMES)])
    return _scan(frames, _FIELD_OF_VIEW, (1, number))


def _drawn(kind: Kind, number: int, data: Path | None) -> LoadedScan:
    """A series as training draws them, with a seed that it does not have; of held-out cines where there are some."""
    library = Library() if data is None else Library(read_library(data, "held out").cines)
    ny, nx = (_FINE * size for size in _MATRIX)
    series = draw_series((SEED, number), library, kind=kind, frames=_N_FRAMES, matrix=(ny, nx))
    return _scan(series.image, _FIELD_OF_VIEW, (2 + [*_DRAWN].index(kind), number), picture=True)


def _patient(path: Path, number: int) -> LoadedScan:
    """One slice of the patient, with a phase that varies slowly over the field and a little with the beat."""
    try:
        with np.load(path) as arrays:
            magnitude = arrays["img"][number].astype(np.float32)
            spacing = arrays["pixel_spacing_mm"]
    except (OSError, EOFError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
        raise ResourceError(f"cannot read slice {number} of the held-out patient from {path}: {error}") from error
    rng = np.random.default_rng([SEED, 1, number])
    still, pulse = (_smooth(rng, magnitude.shape[1:]) for _ in range(2))
    beat = np.sin(2 * np.pi * np.arange(len(magnitude)) / len(magnitude))
    phase = 1.2 * still + 0.15 * beat[:, None, None] * pulse
    field_of_view = (float(spacing[0]) * magnitude.shape[1], float(spacing[1]) * magnitude.shape[2])
    frames = magnitude * np.exp(1j * phase).astype(np.complex64)
    return _scan(frames, field_of_view, (1, len(_SUBJECTS) + number), picture=True)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random field ``(y, x)`` of about unit deviation with three knots along each axis."""
    knots = torch.from_numpy(rng.standard_normal((1, 1, 3, 3)).astype(np.float32))
    field = functional.interpolate(knots, size=shape, mode="bicubic", align_corners=True)
    return np.asarray(field[0, 0].numpy())


# --- how it is measured -----------------------------------------------------------------------------------------------


def _scan(
    frames: NDArray[np.complex64], field_of_view: tuple[float, float], number: tuple[int, int], *, picture: bool = False
) -> LoadedScan:
    """Measure all of k-space, with coils and noise of their own; an ideal noise scan whitens.

    A picture is as large as the body, and shaded by the coils that it was taken with; it gets no shading twice.
    """
    seed = SEED + 1000 * number[0] + number[1]
    size = _BODY if picture else field_of_view
    fine_maps, maps = (
        torch.from_numpy(coil_maps(_N_COILS, matrix, size, seed=seed))
        for matrix in ((frames.shape[1], frames.shape[2]), _MATRIX)
    )
    if picture:
        fine_maps, maps = (each / torch.linalg.vector_norm(each, dim=0) for each in (fine_maps, maps))
    kspace = torch.stack([_measured(fine_maps * frame) for frame in torch.from_numpy(frames)])
    combined = (maps.conj() * ifft(kspace, (-2, -1))).sum(1) / torch.linalg.vector_norm(maps, dim=0)
    truth = np.asarray(combined.numpy(), np.complex64)

    signal = np.quantile(np.abs(truth)[:, dynamic_region(truth)], 0.9)
    colouring = np.linalg.cholesky(noise_covariance(_N_COILS, seed=seed).astype(np.complex128))
    whitening = np.linalg.inv(colouring * (signal / _SNR)).astype(np.complex64)
    rng = np.random.default_rng([SEED, *number])
    noise = rng.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0]
    noisy = np.einsum("vc,fcyx->fvyx", whitening, kspace.numpy(), optimize=True) + noise

    def measured(name: str) -> list[CineSlice]:
        condition = CONDITIONS[name]
        mask = sampling_mask(
            condition.sampling,
            len(noisy),
            _MATRIX[0],
            acceleration=condition.acceleration,
            acs_lines=condition.acs_lines,
            seed=seed,
        )
        return [CineSlice(noisy * mask[:, None, :, None], mask, receiver=Receiver(colouring.astype(np.complex64)))]

    ct = _ct(np.random.default_rng([SEED, *number, 1]), torch.from_numpy(frames[:1]), field_of_view)
    aspect = field_of_view[1] / field_of_view[0]
    seconds = 1.0 / len(frames)
    return LoadedScan(truth[None], measured, aspect, seconds, lambda off: [_placed(ct, off)], maps[None].numpy())


def _measured(images: torch.Tensor) -> torch.Tensor:
    """Centre ``(coil, ky, kx)`` of the k-space of finer images, in the unit of images of its own size."""
    kspace = fft(images, (-2, -1))
    for axis, size in zip((-2, -1), _MATRIX, strict=True):
        length = kspace.shape[axis]
        kspace = kspace.narrow(axis, length // 2 - size // 2, size) * (size / length) ** 0.5
    return kspace


# --- its CT -----------------------------------------------------------------------------------------------------------


def _ct(rng: np.random.Generator, frame: torch.Tensor, field_of_view: tuple[float, float]) -> CtVolume:
    """Make a CT of one frame ``(1, y, x)``: its borders in other grey values, as in training, without the coils."""
    magnitude = ifft(_measured(frame), (-2, -1))[0].abs()
    plane = second_contrast(rng, magnitude / magnitude.quantile(0.999)).numpy()
    low, high = CtSettings().window
    (ny, nx), (size_y, size_x) = _MATRIX, field_of_view
    affine = np.diag([size_x / nx, size_y / ny, 1.0, 1.0])
    affine[:3, 3] = affine[:3, :3] @ (-(nx // 2), -(ny // 2), -0.5)
    return CtVolume(np.repeat(low + (high - low) * plane.T[..., None], 2, axis=2), affine, "")


def _placed(ct: CtVolume, off: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring a CT to the grid of its scan as a stream does, with a registration that is so many mm off along x."""
    ny, nx = _MATRIX
    registration = np.eye(4)
    registration[0, 3] = -off  # from MR to CT
    geometry = SliceGeometry(
        position=(0.0, 0.0, 0.0),
        read_dir=(1.0, 0.0, 0.0),
        phase_dir=(0.0, 1.0, 0.0),
        slice_dir=(0.0, 0.0, 1.0),
        matrix=(nx, ny),
        field_of_view=(nx * ct.affine[0, 0], ny * ct.affine[1, 1]),
        thickness=1.0,
        centre=(nx // 2, ny // 2),
    )
    hu, cover = resample(ct, geometry, transform=registration, slab_samples=1)
    return window(hu, CtSettings().window), cover
