"""Problems of a scan, counted by kind, so that a thousand bad readouts make one sentence."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import TYPE_CHECKING

import numpy as np

from recon_core.printable import shortened
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

logger = logging.getLogger("cinestream")


@unique
class Kind(str, Enum):
    """Kinds of problems; cases of one kind are counted together."""

    # the stream
    SCAN_HEADER = "scan header"
    STREAM = "stream"
    MESSAGE = "message"
    FAILURE = "failure"
    MEMORY = "memory"
    RAW_STREAM = "raw stream"
    PARAMETER = "parameter"
    UNKNOWN_PARAMETERS = "unknown parameters"
    WEIGHTS = "weights"
    EXTRA_SERIES = "extra series"
    DOWNSTREAM = "downstream"
    # readouts
    EMPTY_READOUT = "empty"
    VALUES = "values"
    ENCODING = "encoding"
    UNFIT = "unfit"
    PARTITION = "partition"
    COILS = "coils"
    SAMPLES = "samples"
    OVERSAMPLING = "oversampling"
    TRAJECTORY = "trajectory"
    # buffers of a Gadgetron
    BUFFER = "buffer"
    EMPTY_BUFFER = "empty buffer"
    REFERENCE_BUFFER = "reference buffer"
    BUFFER_COLUMNS = "buffer columns"
    BUFFER_ROWS = "buffer rows"
    LINES_WITHOUT_HEADER = "lines without header"
    REVERSED_LINE = "reversed line"
    # noise
    NOISE = "noise"
    NOISE_VALUES = "noise values"
    ODD_COIL = "odd coil"
    NOISE_STORE = "noise store"
    NOISE_DEPENDENCY = "noise dependency"
    WHITENED = "whitened"
    # sorting into slices and frames
    CENTER_LINE = "centre"
    ECHO = "echo"
    SURPLUS_LINE = "surplus line"
    STRAY_LINE = "stray line"
    FRAME_NUMBER = "frame number"
    LATE_READOUT = "late readout"
    STRAY_SLICE = "stray"
    STRAY_FRAME = "stray frame"
    FURTHER_FRAMES = "further frames"
    FEWER_FRAMES = "fewer frames"
    ABSENT_FRAMES = "absent frames"
    ABSENT_SLICES = "absent slices"
    MISSING_LINES = "missing lines"
    COUNTED_LINES = "counted lines"
    NOT_REAL_TIME = "not real time"
    PHASES_TOGETHER = "phases together"
    # gating
    TICK = "tick"
    TIME_STAMPS = "time stamps"
    TRIGGERS = "triggers"
    HEARTBEAT = "heartbeat"
    GATED_SLICE = "gated slice"
    GATED_OUTPUT = "gated output"
    # images
    RECONSTRUCTION = "reconstruction"
    SERIES_NUMBER = "series"
    TRIGGER_TIMES = "trigger times"
    CT = "ct"
    CT_SLICE = "ct slice"
    IMAGE_SHAPE = "shape"
    IMAGE_VALUES = "not finite"
    IMAGES_AGAIN = "images again"
    BLACK = "black"
    GEOMETRY = "geometry"
    # export
    EXPORT_HEADER = "header"
    UID = "uid"
    STACK = "stack"


# Damage that leaves images out; of other damage the comments of those that lack something speak.
_LOSE_IMAGES = (Kind.STREAM, Kind.MEMORY, Kind.UNFIT, Kind.RECONSTRUCTION, Kind.ABSENT_SLICES, Kind.ABSENT_FRAMES)
_SLICE = ("set", "contrast", "slice")
_FRAME = ("phase", "repetition")
_MOST_FRAMES = 1 << 16  # that are told apart: counters of broken readouts may be anything


class LeftOut:
    """Broken readouts that were left out, by slice and frame, for the comments of the images that lack them."""

    def __init__(self) -> None:
        self._slices: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
        self._frames = 0  # of all slices together

    def add(self, headers: NDArray[np.void]) -> None:
        """Take in ``(readout,)`` acquisition headers of image lines."""
        counters = [headers["idx"][name] for name in (*_SLICE, *_FRAME)]
        places = np.stack([headers["encoding_space_ref"], *counters], axis=1)
        for place, count in zip(*np.unique(places, axis=0, return_counts=True), strict=True):
            frames = self._slices.get(own := tuple(place[: -len(_FRAME)].tolist()), Counter())
            frame = tuple(place[-len(_FRAME) :].tolist())
            if frame not in frames:
                if self._frames == _MOST_FRAMES:
                    continue
                self._frames += 1
            frames[frame] += int(count)
            self._slices[own] = frames

    def notes(self, headers: NDArray[np.void], *, gated: bool) -> tuple[str, ...]:
        """What a reader of the images of a slice must know.

        Parameters
        ----------
        headers
            ``(frame,)`` an acquisition header of every frame of a slice.
        gated
            The frames are of readouts of many beats, which all counters of frames number.
        """
        first = headers[0]
        own = (int(first["encoding_space_ref"]), *(int(first["idx"][name]) for name in _SLICE))
        broken = self._slices.get(own, Counter())
        frames = {tuple(int(header["idx"][name]) for name in _FRAME) for header in headers}
        lost = [count for frame, count in broken.items() if gated or frame in frames]
        if not lost:
            return ()
        text = f"{many(sum(lost), 'broken readout')} left out"
        return (text if gated else f"{text}, of {len(lost)} of {many(len(frames), 'frame')}",)


@dataclass
class Problem:
    """One kind of problem: its first case in words, and how often it came."""

    kind: Kind
    """Which one; like things may be counted apart."""
    text: str
    """What was expected, what came, what to do; of the first case."""
    damage: bool
    """True if data were lost or an image is missing or wrong; False for what was noticed and handled."""
    count: int = 1
    """How many cases."""
    pixels: bool = False
    """Something was guessed, and the images would be others if it were otherwise."""
    first: int = 1
    """How many cases came at first, when it was logged and reported."""

    @property
    def grew(self) -> bool:
        """Whether more cases came since."""
        return self.count > self.first

    def __str__(self) -> str:
        """The sentence for the log, the shell and the client."""
        return self.text if self.count == 1 else f"{self.text} (the first of {self.count} such cases)"


@dataclass
class Problems:
    """All problems of one scan, by kind in the order they first came."""

    listener: Callable[[Problem], None] | None = None
    """Called with the first case of every kind, at once."""
    kinds: dict[str, Problem] = field(default_factory=dict)
    """By name of the kind, with what `add` calls `of`."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Which readouts are missing in which images."""

    def add(self, kind: Kind, text: str, *, damage: bool, count: int = 1, of: str = "", pixels: bool = False) -> None:
        """Note cases of a kind; the first is logged at once.

        Parameters
        ----------
        kind
            Of the problem.
        text
            What was expected, what came, what to do.
        damage
            True if data were lost or an image is missing or wrong. Cases with damage that follow others without any
            are counted apart from them.
        count
            How many cases.
        of
            What of several like things it is about, where each is to be counted for itself.
        pixels
            Something was guessed, and the images would be others if it were otherwise: their comments say so.
        """
        name = f"{kind.value} {of}".rstrip()
        if name in self.kinds and damage and not self.kinds[name].damage:
            name += " with damage"
        known = self.kinds.get(name)
        if known is not None:
            known.count += count
            return
        self.kinds[name] = problem = Problem(kind, shortened(text), damage, count, pixels, count)
        logger.log(logging.ERROR if damage else logging.WARNING, "%s", str(problem))
        if self.listener is not None:
            self.listener(problem)

    def log_totals(self) -> None:
        """Log how many cases there were of what came again since its first case; at the end of the scan."""
        for problem in self:
            if problem.grew:
                logger.log(logging.ERROR if problem.damage else logging.WARNING, "%s", str(problem))

    def __iter__(self) -> Iterator[Problem]:
        """All kinds in the order they came."""
        return iter(self.kinds.values())

    @property
    def guesses(self) -> tuple[str, ...]:
        """What was guessed so far, and changes the images."""
        return tuple(problem.text for problem in self if problem.pixels)

    @property
    def damage(self) -> list[Problem]:
        """Those that lost data or images."""
        return [problem for problem in self if problem.damage]

    @property
    def lost_images(self) -> tuple[str, ...]:
        """Why images are missing, or may be."""
        return tuple(str(problem) for problem in self.damage if problem.kind in _LOSE_IMAGES)
