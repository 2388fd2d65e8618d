"""The Python interface for arrays: k-space of one slice in, images out, by any method."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.data import CineSlice, CtImage, Receiver, Trajectory
from recon_core.errors import DataError, ReconstructionWarning, SettingsError
from recon_core.methods import is_asked_for, method_names
from recon_core.off_grid.trajectory import to_cycles_per_pixel
from recon_core.options import ReconOptions
from recon_core.own_methods import allow_methods
from recon_core.physics.noise_level import is_unit_noise, noise_deviation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from recon_core.data import Reconstruction
    from recon_core.engine import Engine

    Complex = NDArray[np.complex64]

_LARGEST_CONDITION = 1e10  # of a noise covariance
_HERMITIAN = 1e-3  # deviation from it, relative to the largest entry


def reconstruct(
    kspace: ArrayLike,
    method: str = "cg_sense",
    *,
    mask: ArrayLike | None = None,
    coil_maps: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    noise_covariance: ArrayLike | None = None,
    whitened: bool = False,
    periodic: bool = True,
    ct: ArrayLike | None = None,
    trajectory: ArrayLike | None = None,
    matrix: tuple[int, int] | None = None,
    **options: object,
) -> Reconstruction:
    """Reconstruct the k-space of one slice.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64 or complex128, centre at ``N//2`` on both axes, readout oversampling
        removed, zero where nothing was measured; with a `trajectory` ``(frame, coil, readout, sample)``. An array, or a
        tensor of torch on any device.
    method
        Name of the method, as ``cinestream methods`` lists them; `recon_core.register_method` makes one of your own
        known.
    mask
        ``(frame, ky)`` or ``(ky,)`` bool or 0 and 1, True where a line was measured; other lines are not used. None
        takes every line that is not zero, which `Reconstruction.notes` says. A mask of points, as pseudo-radial ones on
        the grid are, is ``(frame, ky, kx)``, or ``(1, ky, kx)`` for all frames; without one the zeros in lines show it.
    coil_maps
        ``(coil, y, x)`` complex coil sensitivities; only their ratios count, because they are brought to unit norm.
        None estimates them from `reference`, or else from the mean of the frames.
    reference
        ``(coil, ky, kx)`` complex k-space of a separate reference scan, zero where nothing was measured.
    noise_covariance
        ``(coil, coil)`` complex, or real where coils are independent: mean of ``n n^H`` over samples of pure noise at
        the bandwidth of the image; the coils are whitened with it. None does not whiten.
    whitened
        The coils are whitened already: the noise has unit standard deviation in real and imaginary part.
    periodic
        The frames are those of one cardiac cycle, the first following on the last; False for real time.
    ct
        ``(y, x)`` float in [0, 1]: CT of the slice on the grid of the image, for methods that take one.
    trajectory
        ``(frame, readout, sample, 2)`` float: where in k-space each sample lies, (x, y), in cycles per pixel or per
        field of view. A third value is the density weight of the sample; without, straight spokes are needed.
        `mask` is then ``(frame, readout)``, and there is no `reference`.
    matrix
        ``(y, x)`` pixels of the image; needed with a `trajectory`.
    **options
        Further options by name, such as ``iterations=20``, ``maps="espirit"``, ``weights=...``, ``fallback="none"``,
        ``device="cpu"``; see `recon_core.options.ReconOptions`.

    Returns
    -------
    Reconstruction
        `image` ``(frame, y, x)`` complex64, `method` that made it, `notes` on what differed from what was asked,
        `seconds` by stage.

    Raises
    ------
    SettingsError
        If the method or an option is unknown, or has a value that is not allowed.
    DataError
        If arrays have the wrong shape or type, are empty, or hold values that are not finite.
    ModelError
        If the method fails and there is no fallback.
    ResourceError
        If the slice does not fit into memory.

    Warns
    -----
    ReconstructionWarning
        If another method took over (`fallback`), or the image is doubtful. ``fallback="none"`` makes the first an
        error.

    Examples
    --------
    >>> from recon_core import reconstruct
    >>> from recon_core.simulate.kspace import simulate_cine
    >>> scan = simulate_cine(frames=8, matrix=(64, 72), coils=4, acceleration=4)
    >>> result = reconstruct(scan.kspace, "low_rank_sparse", noise_covariance=scan.noise_covariance)
    >>> result.image.shape
    (8, 64, 72)
    >>> print(result)
    8 frames of 64 x 72 pixels with low_rank_sparse, relative units
    note: mask from the lines that are not zero: 16 of 64 in each frame

    Undersample complete data with a mask, and use known coil maps:

    >>> complete = simulate_cine(frames=8, matrix=(64, 72), coils=4, sampling="full")
    >>> result = reconstruct(complete.kspace, mask=scan.mask, coil_maps=scan.coil_maps, iterations=15)
    >>> result.notes
    ()
    """
    if method not in method_names():
        allow_methods([method])
    chosen = ReconOptions.of(method=method, **options)
    places = None if trajectory is None else _trajectory(trajectory, kspace, matrix)
    if trajectory is None and matrix is not None:
        raise SettingsError("matrix is for samples with a trajectory; on the grid it is that of kspace")
    cine, notes = _slice(
        kspace, mask, coil_maps, reference, noise_covariance, ct, places, whitened=whitened, periodic=periodic
    )
    result = shared_engine().reconstruct(cine, chosen)
    _warn(result, chosen.method)
    return dataclasses.replace(result, notes=(*notes, *result.notes))


@functools.cache
def shared_engine() -> Engine:
    """Give the engine of the Python interface; the first call imports torch."""
    from recon_core.engine import Engine

    return Engine()


def _warn(result: Reconstruction, asked: str) -> None:
    if not is_asked_for(asked, result.method):
        text = f"the images are of {result.method}, not of {asked}: {'; '.join(result.notes)}"
    elif result.doubts:
        text = f"the images of {result.method} are doubtful: {'; '.join(result.doubts)}"
    else:
        return
    warnings.warn(text, ReconstructionWarning, stacklevel=3)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _slice(
    kspace: ArrayLike,
    mask: ArrayLike | None,
    coil_maps: ArrayLike | None,
    reference: ArrayLike | None,
    noise_covariance: ArrayLike | None,
    ct: ArrayLike | None,
    trajectory: Trajectory | None,
    *,
    whitened: bool,
    periodic: bool,
) -> tuple[CineSlice, list[str]]:
    """Check the arrays and make a slice of them, with notes on what was assumed."""
    notes: list[str] = []
    data = _complex(kspace, "kspace", ("frame", "coil", "ky", "kx"))
    coils, plane = data.shape[1], data.shape[2:] if trajectory is None else trajectory.matrix
    if trajectory is not None and reference is not None:
        raise SettingsError("a reference is for samples on the grid; give coil_maps with a trajectory")
    points = None if mask is None or trajectory is not None else _points(mask, data)
    if points is not None:
        data, mask = np.where(points[:, None], data, np.complex64(0)), points.any(axis=2)
    lines = _mask(mask, data, notes)
    data = np.where(lines[:, None, :, None], data, np.complex64(0))
    columns = np.asarray(data.any((0, 1, 2)))
    if not columns.all():
        notes.append(f"{np.count_nonzero(~columns)} of {len(columns)} columns of k-space hold only zeros: not measured")
    maps = None if coil_maps is None else _complex(coil_maps, "coil_maps", ("coil", "y", "x"), (coils, *plane))
    separate = None if reference is None else _complex(reference, "reference", ("coil", "ky", "kx"), (coils, *plane))
    colouring = None
    if noise_covariance is not None:
        if whitened:
            raise SettingsError(
                "noise_covariance whitens the coils, whitened=True says that they are; give one of them"
            )
        covariance = _array(noise_covariance, "noise_covariance")
        if np.issubdtype(covariance.dtype, np.number):  # an identity matrix is real
            covariance = covariance + 0j
        colouring = _colouring(_complex(covariance, "noise_covariance", ("coil", "coil"), (coils, coils)))
        whitening = np.asarray(np.linalg.inv(colouring), np.complex64)
        data = np.einsum("ij,fjyx->fiyx", whitening, data)
        maps, separate = (
            None if array is None else np.einsum("ij,jyx->iyx", whitening, array) for array in (maps, separate)
        )
    elif whitened and not is_unit_noise(data, lines):
        whitened = False
        found = noise_deviation(data, lines)
        notes.append(f"noise level taken as unknown: whitened data have deviation 1, here it is near {found:.2g}")
    cine = CineSlice(
        np.ascontiguousarray(data),
        lines,
        calibration=separate,
        trajectory=trajectory,
        receiver=Receiver(colouring, None if columns.all() else columns, whitened=whitened),
        ct=None if ct is None else CtImage(_ct(ct, plane)),
        maps=None if maps is None else _unit_norm(maps),
        periodic=periodic,
        points=points,
    )
    return cine, notes


def _trajectory(values: ArrayLike, kspace: ArrayLike, matrix: tuple[int, int] | None) -> Trajectory:
    """The places of samples, in cycles per pixel."""
    if matrix is None:
        raise SettingsError("a trajectory needs the matrix (y, x) of the image")
    sizes = np.asarray(matrix) if isinstance(matrix, Sequence | np.ndarray) else np.zeros(0)
    if sizes.shape != (2,) or not np.issubdtype(sizes.dtype, np.integer) or sizes.min() < 1:
        raise SettingsError(f"matrix must be (y, x) pixels, got {matrix}")
    size = int(sizes[0]), int(sizes[1])
    array, shape = _array(values, "trajectory"), _array(kspace, "kspace").shape
    wanted = (*shape[:1], *shape[2:])
    if array.ndim != 4 or array.shape[:3] != wanted or array.shape[3] not in (2, 3):
        raise DataError(f"trajectory must be (frame, readout, sample, 2 or 3) = {(*wanted, 2)}, got {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"trajectory must be of floating-point numbers, got {array.dtype}")
    single = array.astype(np.float32)
    positions, _ = to_cycles_per_pixel(single[..., :2], size)
    return Trajectory(positions, size, single[..., 2] if array.shape[3] == 3 else None)


def _array(values: ArrayLike, name: str) -> NDArray[Any]:
    """An array of whatever can be made one; tensors of torch from any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().resolve_conj()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is no array: {error}") from error


def _complex(values: ArrayLike, name: str, axes: tuple[str, ...], shape: tuple[int, ...] | None = None) -> Complex:
    """Check a complex array and make it complex64."""
    array = _array(values, name)
    wanted = f"({', '.join(axes)})" + (f" = {shape}" if shape else "")
    if array.ndim != len(axes) or (shape is not None and array.shape != shape):
        hint = "; for a single frame give kspace[None]" if name == "kspace" and array.ndim == 3 else ""
        raise DataError(f"{name} must be {wanted}, got {array.shape}{hint}")
    if not np.issubdtype(array.dtype, np.complexfloating):
        hint = "; join real and imaginary part as kspace[..., 0] + 1j * kspace[..., 1]" if name == "kspace" else ""
        raise DataError(f"{name} must be complex, got {array.dtype}{hint}")
    if not array.size:
        raise DataError(f"{name} is empty: {wanted}, got {array.shape}")
    with np.errstate(over="ignore"):
        single = np.asarray(array, np.complex64)
    wrong = np.argwhere(~np.isfinite(single))
    if len(wrong):
        why = "is not finite" if not np.isfinite(array[tuple(wrong[0])]) else "is too large for complex64"
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, wrong[0], strict=True))
        raise DataError(f"{name} has {len(wrong)} values that cannot be used; the first {why}: {where}")
    return single


def _points(mask: ArrayLike, kspace: Complex) -> NDArray[np.bool_] | None:
    """The mask of points ``(frame, ky, kx)``, where it is one; None where it is of lines."""
    array, (frames, _, *plane) = _array(mask, "mask"), kspace.shape
    if array.ndim != 3 or array.shape not in {(frames, *plane), (1, *plane)}:
        return None
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise DataError(f"mask must be bool, or 0 and 1, got {array.dtype} with other values")
    return np.array(np.broadcast_to(array, (frames, *plane)), np.bool_)


def _mask(mask: ArrayLike | None, kspace: Complex, notes: list[str]) -> NDArray[np.bool_]:
    """The measured lines ``(frame, ky)``: as given and checked, or found from the zeros."""
    frames, _, n_lines, _ = kspace.shape
    filled = np.asarray(kspace.any((1, 3)))
    if not filled.any():
        raise DataError("kspace holds only zeros")
    if mask is None:
        counts = np.unique(filled.sum(1))
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes.append(f"mask from the lines that are not zero: {number} of {n_lines} in each frame")
        return filled
    array = _array(mask, "mask")
    if array.shape not in {(frames, n_lines), (n_lines,)}:
        raise DataError(
            f"mask must be (frame, ky) = {(frames, n_lines)} or (ky,) = {(n_lines,)}, got {array.shape}; a mask of "
            f"points is (frame, ky, kx) = {(frames, *kspace.shape[2:])}"
        )
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise DataError(f"mask must be bool, or 0 and 1, got {array.dtype} with other values")
    lines = np.array(np.broadcast_to(array, (frames, n_lines)), np.bool_)
    if not lines.any():
        raise DataError("mask has no line that was measured")
    empty = np.argwhere(lines & ~filled)
    if len(empty):
        frame, line = empty[0]
        raise DataError(
            f"mask names {len(empty)} lines that hold only zeros (the first: frame {frame}, line {line}); check its "
            "axes, or leave it out and the lines that are not zero are taken"
        )
    return lines


def _colouring(covariance: Complex) -> Complex:
    """The inverse of the whitening: a root of the covariance, for unit deviation in real and imaginary part."""
    exact = covariance.astype(np.complex128)
    if np.abs(exact - exact.conj().T).max() > _HERMITIAN * np.abs(exact).max():
        raise DataError("noise_covariance must be Hermitian: the mean of n n^H over noise samples n (coil,)")
    condition = np.linalg.cond(exact)
    try:
        root = np.linalg.cholesky(exact / 2)
    except np.linalg.LinAlgError:
        condition = np.inf
    if not condition < _LARGEST_CONDITION:
        raise DataError(
            f"noise_covariance is not positive definite (condition {condition:.1e}); a coil may be dead, or the noise "
            "samples fewer than the coils"
        )
    return np.asarray(root, np.complex64)


def _unit_norm(maps: Complex) -> Complex:
    """Maps of unit norm over the coils; zero stays zero."""
    norm = np.linalg.norm(maps, axis=0)
    if not norm.any():
        raise DataError("coil_maps hold only zeros")
    return np.asarray(maps / np.where(norm > 0, norm, 1), np.complex64)


def _ct(ct: ArrayLike, plane: tuple[int, ...]) -> NDArray[np.float32]:
    array = _array(ct, "ct")
    if array.shape != plane or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"ct must be (y, x) = {plane} of floating-point numbers, got {array.shape} {array.dtype}")
    if not ((array >= 0) & (array <= 1)).all():
        raise DataError("ct must be in [0, 1]: map the window of HU, for instance -200 to 800, to it")
    return np.asarray(array, np.float32)
