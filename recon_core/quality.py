"""What weights were trained for, and whether a scan is like it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

#: Patterns that networks are trained on: the same lines in every frame; regular lines that shift from frame to frame;
#: irregular lines that differ from frame to frame; all lines.
PATTERNS = ("constant", "interleaved", "random", "full")


@dataclass(frozen=True)
class Sampling:
    """A scan as a network sees it.

    Parameters
    ----------
    frames, coils, lines, samples
        Size of the k-space; lines along ky, samples along the readout.
    acceleration
        Lines over the mean number of them measured in a frame that has any; 1 is complete.
    centre_lines
        Lines of the central block that every frame with any line has (ACS).
    pattern
        One of `PATTERNS`.
    empty_frames
        Frames without a measured line.
    """

    frames: int
    coils: int
    lines: int
    samples: int
    acceleration: float
    centre_lines: int
    pattern: str
    empty_frames: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_], coils: int, samples: int) -> Sampling:
        """Describe a mask.

        Parameters
        ----------
        mask
            ``(frame, ky)``.
        coils, samples
            The other sizes of the k-space.
        """
        frames, lines = mask.shape
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
        )


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
    if (filled == common).all():
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
    """The scans that weights were trained for; what is None was not recorded and is not checked.

    Parameters
    ----------
    acceleration, frames, coils, lines, samples, centre_lines
        Least and most, as in `Sampling`.
    patterns
        Names out of `PATTERNS`.
    empty_frames
        Least and most frames without a line.
    """

    acceleration: Bounds | None = None
    frames: Bounds | None = None
    coils: Bounds | None = None
    lines: Bounds | None = None
    samples: Bounds | None = None
    centre_lines: Bounds | None = None
    empty_frames: Bounds | None = None
    patterns: tuple[str, ...] | None = None

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
                raise SettingsError(f"a training range has {', '.join(known)}; it has no {name!r}")
            values[name] = _patterns(value) if name == "patterns" else _bounds(name, value)
        return cls(**values)

    def mapping(self) -> dict[str, list[float] | list[str]]:
        """Give the range as a manifest has it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Say it in one line."""
        parts = [
            f"{name.replace('_', ' ')} {_interval(*bounds)}"
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
            found: float = getattr(scan, name)
            if not trained[0] <= round(found, 2) <= trained[1]:
                reasons.append(f"{name.replace('_', ' ')} {found:.3g}, trained for {_interval(*trained)}")
        if self.patterns is not None and scan.pattern not in self.patterns:
            reasons.append(f"{scan.pattern} pattern, trained for {' or '.join(self.patterns)}")
        return reasons


def _interval(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _bounds(name: str, value: object) -> Bounds:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in value)
        or not value[0] <= value[1]
    ):
        raise SettingsError(f"{name} of a training range must be [least, most], got {value!r}")
    return float(value[0]), float(value[1])


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or any(pattern not in PATTERNS for pattern in value):
        raise SettingsError(f"patterns of a training range are some of {', '.join(PATTERNS)}; got {value!r}")
    return tuple(value)
