"""What weights were trained for, how good their images were, and whether a scan and its image are like that."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeGuard

    from numpy.typing import NDArray

#: Patterns of whole lines: the same in every frame; regular ones that shift from frame to frame; irregular ones that
#: differ from frame to frame; all of them.
LINE_PATTERNS = ("constant", "interleaved", "random", "full")
#: All patterns: also points instead of whole lines, as of pseudo-radial masks; straight and other readouts that follow
#: no grid.
PATTERNS = (*LINE_PATTERNS, "points", "radial", "spiral")

#: Limits of images where none were recorded with the weights. Chosen from a phantom and cines of patients (8 coils, all
#: lines to 1 of 8): the truth has a residual of 0.03 to 0.15 and a change of 0.06 to 0.45 at an SNR of 14 and more, and
#: up to 0.34 and 0.71 at one of 6; no image has a residual of 1, as has one that is twice too bright.
DEFAULT_RESIDUAL, DEFAULT_CHANGE = 0.4, 0.8
# Of 60 images of drawn scans that were weighed none has a streak at all; of those that were not weighed, the image of
# the reference was mostly the better one where they have one of this size.
_MOST_STREAK = 0.1
# An image that stands still has 0, the truth 0.2 or more.
_LEAST_MOTION = 0.15
# Share of the lines of any frame that a mean frame has, from which on they count as the same: a readout may be lost.
_ALIKE = 0.9


@dataclass(frozen=True)
class Sampling:
    """A scan as a network sees it."""

    frames: int
    coils: int
    lines: int
    samples: int
    """`frames`, `coils`, `lines`, `samples`: Size of the k-space; lines along ky, samples along the readout."""
    acceleration: float
    """Lines, or points, over the mean number of them measured in a frame that has any; 1 is complete."""
    centre_lines: int
    """Lines of the central block that every frame with any line has (ACS)."""
    pattern: str
    """One of `PATTERNS`."""
    empty_frames: int
    """Frames without a measured line."""
    snr: float | None = None
    """Peak of the image of the time average over the standard deviation of the noise; None where that is not known."""
    repeats: bool = False
    """Whether frames have the same lines, or points, but for a few, and not all: their average leaves as much open as
    each of them."""

    @classmethod
    def of(cls, mask: NDArray[np.bool_], coils: int, samples: int, snr: float | None = None) -> Sampling:
        """Describe a mask.

        Parameters
        ----------
        mask
            ``(frame, ky)``, or ``(frame, ky, kx)`` of points.
        coils, samples
            The other sizes of the k-space.
        snr
            Signal-to-noise ratio, where it is known.
        """
        frames, lines = mask.shape[:2]
        if mask.ndim > 2:
            filled = mask[mask.any(axis=(1, 2))]
            acceleration = float(filled.size / filled.sum()) if len(filled) else float("inf")
            of_lines = cls.of(np.asarray(mask.any(axis=2)), coils, samples, snr)
            return dataclasses.replace(
                of_lines, acceleration=acceleration, pattern="points", centre_lines=0, repeats=_repeats(filled)
            )
        filled = mask[mask.any(axis=1)]
        common = np.asarray(filled.all(axis=0)) & bool(len(filled))
        return cls(
            frames=frames,
            coils=coils,
            lines=lines,
            samples=samples,
            acceleration=float(filled.size / filled.sum()) if len(filled) else float("inf"),
            centre_lines=_centre_lines(common),
            pattern=_pattern(filled, common),
            empty_frames=frames - len(filled),
            snr=snr,
            repeats=_repeats(filled),
        )

    @classmethod
    def off_grid(
        cls,
        mask: NDArray[np.bool_],
        coils: int,
        plane: tuple[int, int],
        *,
        straight: bool,
        share: float | None = None,
        snr: float | None = None,
        repeats: bool = False,
    ) -> Sampling:
        """Describe samples that follow no grid, on that of the image.

        Parameters
        ----------
        mask
            ``(frame, readout)``.
        coils
            Their number.
        plane
            ``(y, x)`` pixels of the image.
        straight
            Whether the readouts are straight lines.
        share
            Of the grid that a mean frame counts as much as, empty ones among them; None counts each readout as a line.
        snr
            Signal-to-noise ratio, where it is known.
        repeats
            See `Sampling.repeats`.
        """
        filled = int(mask.any(axis=1).sum())
        of_all = float(mask.sum()) / (len(mask) * min(plane)) if share is None else share
        return cls(
            frames=len(mask),
            coils=coils,
            lines=plane[0],
            samples=plane[1],
            acceleration=filled / len(mask) / of_all if filled else float("inf"),
            centre_lines=0,
            pattern="radial" if straight else "spiral",
            empty_frames=len(mask) - filled,
            snr=snr,
            repeats=repeats,
        )


def _repeats(filled: NDArray[np.bool_]) -> bool:
    """Whether what some frames leave out is left out of all, and what some have is in nearly all."""
    measured = filled.any(axis=0)
    return not bool(measured.all()) and bool(filled.sum() >= _ALIKE * len(filled) * measured.sum())


def _centre_lines(common: NDArray[np.bool_]) -> int:
    """Length of the run of measured lines around the centre."""
    centre = common.size // 2
    if not common[centre]:
        return 0
    gaps = np.flatnonzero(~common)
    first = gaps[gaps < centre].max(initial=-1)
    end = gaps[gaps > centre].min(initial=common.size)
    return int(end - first - 1)


def _pattern(filled: NDArray[np.bool_], common: NDArray[np.bool_]) -> str:
    if filled.all():
        return "full"
    if (filled == filled[:1]).all():
        return "constant"
    # Without the lines that all frames have, each frame of a regular pattern has lines at one distance, but for those
    # of its own that lie among the common ones.
    steps = [np.diff(np.flatnonzero(frame & ~common)) for frame in filled]
    distances = np.concatenate(steps)
    step = int(distances.min(initial=common.size))
    regular = (distances % step == 0).all() and all(_few_gaps(frame, common, step) for frame in filled)
    return "interleaved" if regular else "random"


def _few_gaps(frame: NDArray[np.bool_], common: NDArray[np.bool_], step: int) -> bool:
    """Whether the lines of a frame are all those at one distance, among the common ones or not."""
    own = np.flatnonzero(frame & ~common)
    return own.size == 0 or bool(frame[own[0] % step :: step].all())


Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TrainingRange:
    """The scans that weights were trained for; what is None was not recorded and is not checked."""

    acceleration: Bounds | None = None
    frames: Bounds | None = None
    coils: Bounds | None = None
    lines: Bounds | None = None
    samples: Bounds | None = None
    centre_lines: Bounds | None = None
    """`acceleration`, `frames`, `coils`, `lines`, `samples`, `centre_lines`: Least and most, as in `Sampling`."""
    empty_frames: Bounds | None = None
    """Least and most frames without a line."""
    snr: Bounds | None = None
    """Least and most, as in `Sampling`; not checked where the noise of the scan is not known."""
    patterns: tuple[str, ...] | None = None
    """Names out of `PATTERNS`."""

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> TrainingRange:
        """Read a range as a manifest has it: ``{acceleration: [4, 8], patterns: [random]}``.

        Raises
        ------
        SettingsError
            If a name is unknown or a value is not a pair of numbers, the smaller one first.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in known:
                raise SettingsError(f"a training range has no {name!r}; {choose_from(name, known)}")
            values[name] = _patterns(value) if name == "patterns" else _bounds(name, value)
        return cls(**values)

    def mapping(self) -> dict[str, list[float] | list[str]]:
        """Give the range as a manifest has it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Say it in one line."""
        parts = [
            f"{_label(name)} {_interval(*bounds)}"
            for field in dataclasses.fields(self)
            if (name := field.name) != "patterns" and (bounds := getattr(self, name)) is not None
        ]
        if self.patterns is not None:
            parts.append(f"{' or '.join(self.patterns)} pattern")
        return ", ".join(parts)

    def outside(self, scan: Sampling) -> list[str]:
        """Say in which ways a scan is not like the training; nothing if it is.

        Parameters
        ----------
        scan
            The scan.

        Returns
        -------
        list of str
            Such as ``acceleration 2.8, trained for 4 to 11``.
        """
        reasons = []
        for field in dataclasses.fields(self):
            name = field.name
            if name == "patterns" or (trained := getattr(self, name)) is None:
                continue
            found: float | None = getattr(scan, name)
            if found is not None and not trained[0] <= round(found, 2) <= trained[1]:
                reasons.append(f"{_label(name)} {found:.3g}, trained for {_interval(*trained)}")
        if self.patterns is not None and scan.pattern not in self.patterns:
            reasons.append(f"{scan.pattern} pattern, trained for {' or '.join(self.patterns)}")
        return reasons


def _label(name: str) -> str:
    return "SNR" if name == "snr" else name.replace("_", " ")


def _interval(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether a file has a number there that float64 can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _bounds(name: str, value: object) -> Bounds:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(map(_is_number, value))
        or not value[0] <= value[1]
    ):
        raise SettingsError(f"{name} of a training range must be [least, most], got {value!r:.60}")
    return float(value[0]), float(value[1])


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or any(pattern not in PATTERNS for pattern in value):
        raise SettingsError(f"patterns of a training range are some of {', '.join(PATTERNS)}; got {value!r}")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class ImageFigures:
    """How far the image of a network is from the data, and from that of its reference, a method without weights."""

    residual: float | None = None
    """Part of the signal in the measured samples that the image does not explain, in its worst frame: 0 where it leaves
    no more than noise or than the image of the reference, 1 or more where it is no better than no image at all. None
    where the data hold no signal."""
    change: float | None = None
    """Distance to the image of the reference in the worst frame, relative to that image. None where there is none to
    compare with, or where the noise is not known, so that that image is as noisy as the data."""
    streak: float | None = None
    """Largest difference of the time average from that of the reference in a small place, over the signal of bright
    tissue, that what the data leave open does not explain; 0 where there is none. None where that is not known."""
    motion: float | None = None
    """How much the image changes over time, relative to what its time average does not explain of the data: 0 if it
    stands still, about 1 if it moves as they do. None where nothing moves."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Figures of the images of weights on scans like those of the training."""

    residual: float | None = None
    change: float | None = None
    """`residual`, `change`: At most, as in `ImageFigures`; None where it was not recorded, and `DEFAULT_RESIDUAL` and
    `DEFAULT_CHANGE` hold."""
    least_change: float | None = None
    """The change below which the network had nothing to gain and the image of the reference may be better: easy scans.
    None where there is no such change."""

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> Limits:
        """Read limits as a manifest has them: ``{residual: 0.1, change: 0.35}``.

        Raises
        ------
        SettingsError
            If a name is unknown or a value is no positive number.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, float] = {}
        for name, value in mapping.items():
            if name not in known:
                raise SettingsError(f"limits of an image have no {name!r}; {choose_from(name, known)}")
            if not _is_number(value) or not 0 < value < math.inf:
                raise SettingsError(f"{name} of limits must be a positive number, got {value!r:.60}")
            values[name] = float(value)
        limits = cls(**values)
        if not limits.gains(limits.most_change):
            raise SettingsError(
                f"least_change of limits must be below the change of {limits.most_change:g}, got {limits.least_change}"
            )
        return limits

    @property
    def most_change(self) -> float:
        """The change that an image may have: the one recorded, or that by default."""
        return DEFAULT_CHANGE if self.change is None else self.change

    def gains(self, change: float | None) -> bool:
        """Whether an image of this change is likely to be better than the reference; yes where it is not known."""
        return self.least_change is None or change is None or not change < self.least_change

    def mapping(self) -> dict[str, float]:
        """Give the limits as a manifest has them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def describe(self) -> str:
        """Say them in one line."""
        parts = [] if self.residual is None else [f"residual up to {_percent(self.residual)}"]
        if self.change is not None or self.least_change is not None:
            least = "" if self.least_change is None else f"from {_percent(self.least_change)} "
            parts.append(f"change {least}up to {_percent(self.most_change)}")
        return ", ".join(parts)

    def objections(self, figures: ImageFigures, reference: str) -> list[str]:
        """Say why an image should not be sent; nothing if all is well.

        Parameters
        ----------
        figures
            Of the image.
        reference
            Name of the method that it is compared with.

        Returns
        -------
        list of str
            Such as ``differs by 61 % from that of cg_sense, at most 35 % on scans of its training``.
        """
        reasons = []
        for found, recorded, default, what in (
            (figures.residual, self.residual, DEFAULT_RESIDUAL, "leaves {} of the signal in the data unexplained"),
            (figures.change, self.change, DEFAULT_CHANGE, f"differs by {{}} from that of {reference}"),
        ):
            limit = default if recorded is None else recorded
            if found is not None and not found <= limit:  # also what is not a number
                known_from = "by default" if recorded is None else "on scans of its training"
                reasons.append(f"{what.format(_percent(found))}, at most {_percent(limit)} {known_from}")
        if figures.change is not None and self.least_change is not None and not self.gains(figures.change):
            reasons.append(
                f"differs by {_percent(figures.change)} from that of {reference}, and below "
                f"{_percent(self.least_change)} there was nothing to gain on scans of its training"
            )
        if figures.streak is not None and not figures.streak <= _MOST_STREAK:
            reasons.append(
                f"has a streak or spot of {_percent(figures.streak)} of the signal of bright tissue in its time "
                f"average, where {reference} and the data say otherwise; at most {_percent(_MOST_STREAK)}"
            )
        # of an image that is wrong as a whole, the time average explains little whatever moves
        if not reasons and figures.motion is not None and figures.motion < _LEAST_MOTION:
            reasons.append("stands still while the data move")
        return reasons


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"
