"""Where in k-space the samples of a readout that follows no grid lie, and how much of k-space each of them has.

Positions are in cycles per pixel of the image, from -0.5 to 0.5, in the order (x, y) of ISMRMRD.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.errors import DataError, SettingsError
from recon_core.words import choose_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The golden angle of radial scans, in degrees (doi:10.1109/TMI.2006.885337).
GOLDEN_ANGLE = 180 * (math.sqrt(5) - 1) / 2
_EDGE = 0.5 * 2**0.5 + 0.05  # cycles per pixel: the corners of the grid, and what rounding and delays add
_NEAR = 0.2, _EDGE  # the largest position of a trajectory, in cycles per pixel
_CLOSE = 0.45, 0.55  # the same where the unit goes by the size of the image in metres
#: Units that the positions of a trajectory may have, in words.
UNITS = {
    "pixel": "cycles per pixel",
    "fov": "cycles per field of view",
    "metre": "cycles per metre",
    "radian": "radians per metre",
}
_SAME_ANGLE = 1e-4  # radians
_SAME_TURN = 0.1  # degrees: what rounding of positions and delays leave
_TINY = range(3, 11)  # numbers of tiny golden angles that are known by name; the second is golden the other way round
_STRAIGHT = 1e-3  # cycles per pixel that a sample of a spoke may lie beside it


def tiny_golden_angle(number: int) -> float:
    """The angle in degrees of tiny golden-angle scans; the first is the golden angle (doi:10.1109/TMI.2014.2382572)."""
    return 180 / ((1 + math.sqrt(5)) / 2 + number - 1)


def angle_step(law: str, spokes: int, *, half: bool = False, tiny: int = 7) -> float:
    """The angle from spoke to spoke in degrees.

    Parameters
    ----------
    law
        ``uniform``, ``golden`` or ``tiny_golden``.
    spokes
        Spokes of a frame, which uniform ones share the turn between them.
    half
        They begin at the centre, so that a whole turn is needed.
    tiny
        Which tiny golden angle.

    Raises
    ------
    SettingsError
        If there is no such law.
    """
    steps = {
        "uniform": (360.0 if half else 180.0) / max(1, spokes),
        "golden": GOLDEN_ANGLE,
        "tiny_golden": tiny_golden_angle(tiny),
    }
    if law not in steps:
        raise SettingsError(f"there are no angles {law!r}; {choose_from(law, steps)}")
    return steps[law]


def spoke_positions(
    angles: NDArray[np.float64], samples: int, center: int, matrix: tuple[int, int], oversampling: float = 2.0
) -> NDArray[np.float32]:
    """Place the samples of straight readouts through the centre of k-space.

    Parameters
    ----------
    angles
        ``(...)`` of the spokes in radians, from x towards y.
    samples, center
        Samples of a spoke, and which of them is that of the centre.
    matrix
        ``(y, x)`` pixels of the image, which has square pixels; the spacing of the samples is that of the longer side.
    oversampling
        Field of view along the spokes over the longer side of that of the image.

    Returns
    -------
    NDArray[np.float32]
        ``(..., sample, 2)`` in cycles per pixel.
    """
    radius = (np.arange(samples) - center) / (oversampling * max(matrix))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.asarray(directions[..., None, :] * radius[:, None], np.float32)


def to_cycles_per_pixel(
    values: NDArray[np.float32],
    matrix: tuple[int, int],
    unit: str = "auto",
    field_of_view: tuple[float, float] | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Bring positions of any unit that is met to cycles per pixel.

    Parameters
    ----------
    values
        ``(..., 2)`` positions (x, y).
    matrix
        ``(y, x)`` pixels of the image.
    unit
        One of `UNITS`; ``auto`` tells them apart by the largest.
    field_of_view
        ``(y, x)`` of the image in mm; None knows no units with metres.

    Returns
    -------
    tuple
        Positions of the same shape, float32, and the unit that was taken.

    Raises
    ------
    DataError
        If the largest is that of none, or values are not finite, or the field of view is needed and not known.
    """
    _refuse_what_is_not_finite(values)
    size = np.array([matrix[1], matrix[0]], np.float32)
    cells: dict[str, NDArray[np.float32]] = {"pixel": np.ones(2, np.float32), "fov": size}
    if field_of_view is not None and min(field_of_view) > 0:
        per_metre = 1000 * size / np.array([field_of_view[1], field_of_view[0]])
        cells |= {"metre": per_metre.astype(np.float32), "radian": (2 * math.pi * per_metre).astype(np.float32)}
    if unit == "auto":
        unit = _likely_unit(values, matrix, cells)
    if unit not in cells:
        raise DataError(f"positions in {UNITS[unit]} need the field of view of the image, which is not known")
    return np.asarray(values / cells[unit], np.float32), unit


def _likely_unit(values: NDArray[np.float32], matrix: tuple[int, int], cells: dict[str, NDArray[np.float32]]) -> str:
    """The unit in which positions reach as far as those of a scan do; `cells` are one cycle per pixel in each.

    Raises
    ------
    DataError
        If there is none.
    """
    for furthest in (np.max, _usual):  # a few broken readouts may go anywhere
        for name, cell in cells.items():
            low, high = _NEAR if name in ("pixel", "fov") else _CLOSE
            if values.size and low <= float(furthest(np.abs(values / cell))) <= high:
                return name
    expected = f"0.5 ({UNITS['pixel']}) or {max(matrix) / 2:g} ({UNITS['fov']})"
    others = "positions in radians or per metre have to be converted by the sender"
    if "metre" in cells:
        further = (f"{float(cells[name].max()) / 2:.3g} ({UNITS[name]})" for name in ("metre", "radian"))
        others = f"further units are known by a reach of {' or '.join(further)}"
    raise DataError(
        f"the trajectory reaches {float(np.abs(values).max(initial=0.0)):.3g}, expected {expected}; where it goes less "
        f"far than the matrix, trajectory_unit says which it is, and {others}"
    )


def _usual(positions: NDArray[np.float32]) -> Any:  # noqa: ANN401 - a number
    """How far from the centre most readouts ``(..., sample, 2)`` go."""
    radius = np.linalg.norm(positions.astype(np.float64), axis=-1).max(axis=-1)
    return np.median(radius[radius > 0]) if radius.any() else 0.0


def check_positions(positions: NDArray[np.float32], measured: NDArray[np.bool_]) -> None:
    """Refuse positions of no use.

    Parameters
    ----------
    positions
        ``(frame, readout, sample, 2)`` in cycles per pixel.
    measured
        ``(frame, readout)`` bool; the others are not looked at.

    Raises
    ------
    DataError
        If some are not finite or outside of k-space, or all are the same.
    """
    used = positions[measured]
    if not used.size:
        return
    _refuse_what_is_not_finite(used)
    radius = float(np.abs(used).max(initial=0.0))
    if radius == 0:
        raise DataError("the trajectory is zero everywhere; send the position of every sample, or set the angles")
    if radius > _EDGE:
        raise DataError(f"the trajectory reaches {radius:.3g} cycles per pixel, expected -0.5 to 0.5 along each axis")


def leave_kspace(positions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which readouts ``(readout, sample, 2)`` go beyond the corners of k-space."""
    return np.asarray(np.abs(positions).max(axis=(1, 2)) > _EDGE)


def _refuse_what_is_not_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise DataError("the trajectory has values that are not finite; send positions in cycles per pixel")


def are_straight(positions: NDArray[np.float32]) -> bool:
    """Whether readouts ``(readout, sample, 2)`` are straight lines with samples at equal distances."""
    steps = np.diff(positions, axis=1)
    if not steps.shape[1] or not np.isfinite(steps).all():
        return False
    uneven = float(np.abs(steps - steps.mean(1, keepdims=True)).max(initial=0.0))
    return bool((np.abs(steps).max(axis=(1, 2)) > 0).all()) and uneven < _STRAIGHT


def angle_law(positions: NDArray[np.float32]) -> str:
    """Say in words how spokes turn from one to the next.

    Parameters
    ----------
    positions
        ``(readout, sample, 2)`` in cycles per pixel, in the order in which they were measured.

    Examples
    --------
    >>> angle_law(spoke_positions(np.radians(GOLDEN_ANGLE * np.arange(5)), 8, 4, (4, 4)))
    '111.25 degrees from spoke to spoke (golden angle)'
    """
    if not are_straight(positions):
        return "readouts that are no straight lines"
    span = (positions[:, -1] - positions[:, 0]).astype(np.float64)
    turns = np.diff(np.degrees(np.arctan2(span[:, 1], span[:, 0]))) % 180
    if not len(turns):
        return "one spoke"
    turn = float(np.median(turns))
    if np.mean(_apart(turns, turn) < _SAME_TURN) < 0.5:
        return "no one angle from spoke to spoke"
    known = {"golden angle": GOLDEN_ANGLE} | {f"tiny golden angle {n}": tiny_golden_angle(n) for n in _TINY}
    names = [name for name, angle in known.items() if min(_apart(turn, angle), _apart(turn, -angle)) < _SAME_TURN]
    whole = 180 / min(turn, 180 - turn) if 0 < turn < 180 else 0.0
    if not names and whole and abs(whole - round(whole)) < _SAME_TURN:
        names = [f"uniform, {round(whole)} in half a turn"]
    return f"{turn:.2f} degrees from spoke to spoke" + "".join(f" ({name})" for name in names)


def _apart(one: NDArray[np.float64] | float, other: float) -> Any:  # noqa: ANN401 - an array or a number
    """Degrees between directions of spokes, of which the sense does not matter."""
    return np.abs((one - other + 90) % 180 - 90)


def cell_areas(positions: NDArray[np.float32], matrix: tuple[int, int], *, evenly: bool = False) -> NDArray[np.float32]:
    """Find how much of k-space each sample has, in cells of the Cartesian grid: the density weights of gridding.

    Parameters
    ----------
    positions
        ``(readout, sample, 2)`` in cycles per pixel, of readouts that are used together.
    matrix
        ``(y, x)`` pixels of the image.
    evenly
        Every spoke has the same part, whatever the angles between them.

    Returns
    -------
    NDArray[np.float32]
        ``(readout, sample)``; they add up to the disk, or whatever part of k-space the readouts cover.

    Raises
    ------
    DataError
        If the readouts are no straight lines through the centre of k-space.

    Notes
    -----
    Cells of Voronoi in polar coordinates: between the circles and between the rays half-way to the neighbours, so that
    those of evenly spaced spokes are the Ram-Lak ramp, and golden-angle spokes count by their own gaps.
    """
    scaled = positions.astype(np.float64) * np.array([matrix[1], matrix[0]])
    radius, angle = _polar(scaled)
    areas = np.zeros(radius.shape)
    sides = [radius > 0, radius < 0]
    first = np.concatenate([angle, angle + math.pi])
    has = np.concatenate([side.any(1) for side in sides])
    gaps = np.zeros(len(first))
    gaps[has] = 2 * math.pi / np.count_nonzero(has) if evenly else _gaps(first[has] % (2 * math.pi))
    spacing = np.abs(np.gradient(radius, axis=1)) if radius.shape[1] > 1 else np.ones_like(radius)
    for number, side in enumerate(sides):
        gap = gaps[number * len(angle) : (number + 1) * len(angle), None]
        areas += np.where(side, gap * np.abs(radius) * spacing, 0)
    # samples within half a spacing of the centre share the disk there
    middle = np.abs(radius) < spacing / 2
    shared = math.pi * float(np.mean(spacing[middle] ** 2)) / 4 if middle.any() else 0.0
    areas[middle] = shared / max(1, int(middle.sum()))
    return areas.astype(np.float32)


def _polar(scaled: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance ``(readout, sample)`` along each spoke, and its angle ``(readout,)``; delays may move it along itself.

    Raises
    ------
    DataError
        If the readouts are not straight, or do not pass near the centre.
    """
    span = scaled[:, -1] - scaled[:, 0]
    length = np.linalg.norm(span, axis=-1)
    if scaled.shape[1] < 2 or not (length > 0).all():
        raise DataError("every readout needs two samples or more at different positions of k-space")
    direction = span / length[:, None]
    radius = np.einsum("rsd,rd->rs", scaled, direction)
    beside = scaled - radius[..., None] * direction[:, None]
    if float(np.abs(beside - beside.mean(1, keepdims=True)).max()) > _STRAIGHT * float(length.max()):
        raise DataError("the readouts are no straight spokes: give density weights, as the third column of traj")
    return radius, np.arctan2(direction[:, 1], direction[:, 0])


def _gaps(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the way to the next angle on both sides, around the circle; equal angles share theirs."""
    order = np.argsort(angles)
    ordered = angles[order]
    new = np.diff(ordered, prepend=ordered[0] - 1) > _SAME_ANGLE
    group = np.cumsum(new) - 1
    rays = ordered[new]
    steps = np.diff(rays, append=rays[0] + 2 * math.pi)
    half = (steps + np.roll(steps, 1)) / 2
    gaps = np.empty_like(angles)
    gaps[order] = half[group] / np.bincount(group)[group]
    return gaps
