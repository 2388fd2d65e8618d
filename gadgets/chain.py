"""The whole reconstruction of one scan as a generator: messages of a stream in, images out.

readouts -> prepared readouts -> complete slices -> reconstructions -> images.

File, pipe and socket run this very chain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from gadgets.ct import load_ct
from gadgets.images.image_array import join_series
from gadgets.images.maker import ImageMaker
from gadgets.preparation.gathered import readouts_of_bucket, readouts_of_buffers
from gadgets.preparation.noise import ScanNoise
from gadgets.preparation.readouts import Preparation
from gadgets.preparation.spokes import SpokePositions
from gadgets.problems import Kind, Problems
from gadgets.settings.checks import check_units, check_weights, unmet_extras
from gadgets.settings.settings import Settings, apply
from gadgets.slices.buffers import slice_buffers
from gadgets.slices.complete import describe
from gadgets.slices.countdown import Countdown
from gadgets.wire.containers import Bucket, ImageArray, ReconData
from gadgets.wire.messages import Image, Readouts, Text, Waveform
from recon_core.budget import Budget
from recon_core.errors import CinestreamError, DataError, HeaderError, ResourceError, ScanStoppedError, SettingsError
from recon_core.methods import find_method, is_asked_for
from recon_core.physics.noise_level import is_unit_noise, noise_deviation
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gadgets.preparation.noise import NoiseSources
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import Message
    from recon_core.ct.placement import PlacedCt
    from recon_core.data import CineSlice, Reconstruction
    from recon_core.options import ReconOptions
    from recon_core.spread import Spread

    #: Called with a slice and its reconstruction.
    Watch = Callable[[CompleteSlice, Reconstruction], None]

logger = logging.getLogger("cinestream")

_LINES_APART = 64  # on average: no acceleration is so high, and a large matrix takes long
#: From one line of the log to the next on a slice that takes long.
LONG_SECONDS = 10.0
_RAW = (Readouts, ReconData, Bucket)
_IMAGES = (Image, ImageArray)
_HANDED_ON: dict[str, tuple[type, ...]] = {
    "none": (),
    "acquisitions": _RAW,
    "images": _IMAGES,
    "all": (*_RAW, *_IMAGES),
}


class _Begun(NamedTuple):
    """A slice of which the reconstruction has begun."""

    complete: CompleteSlice
    settings: Settings
    preview: bool
    placed: PlacedCt | None
    """The CT of it, if it has one."""
    result: Callable[[], Reconstruction]
    """Gives its reconstruction, or raises why there is none."""
    seconds: float
    """How long the begin took."""


@dataclass
class ScanSummary:
    """What happened during a scan, for the log and the report."""

    readouts: int = 0
    """How many readouts came."""
    images: int = 0
    """How many images were made."""
    slices: int = 0
    """Of how many slices."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage, summed over slices."""
    problems: Problems = field(default_factory=Problems)
    """What went wrong or was noticed."""
    reconstructed: int = 0
    """How many lines of the readouts became images."""
    running: str = ""
    """What is being reconstructed; empty while nothing is."""
    _began: float = 0.0
    _logged: float = 0.0

    @contextlib.contextmanager
    def run(self, what: str) -> Iterator[None]:
        """Say what is being reconstructed within."""
        self.running, self._began = what, time.monotonic()
        self._logged = self._began
        try:
            yield
        finally:
            self.running = ""

    @property
    def seconds_running(self) -> float:
        """How long it has been."""
        return time.monotonic() - self._began

    def log_long(self) -> None:
        """Log now and then what has been running for long; to be called often meanwhile."""
        if self.running and time.monotonic() - self._logged >= LONG_SECONDS:
            self._logged = time.monotonic()
            logger.info("%s is still being reconstructed, for %.0f s", self.running, self.seconds_running)


class Reconstructor(Protocol):
    """What a chain needs of an engine; `recon_core.engine.Engine` documents the methods."""

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        """Reconstruct one slice."""

    def coil_maps(
        self,
        calibration: NDArray[np.complex64],
        options: ReconOptions,
        near: NDArray[np.complex64] | None = None,
    ) -> tuple[NDArray[np.complex64], tuple[str, ...]]:
        """Estimate coil maps apart from a reconstruction, with notes on what had to be done differently."""


class Chain:
    """The reconstruction of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        The pipeline's settings.
    engine
        Gives the engine when the first slice is complete; so nothing heavy is imported before.
    problems
        Where to note what goes wrong; a listener may be on it.
    watch
        Called with every slice and its reconstruction, for a report; may be None.
    noise
        Noise from outside of the scan; may be None.
    budget
        Memory that the scan may take; None takes what a process may have.
    arrived
        Tells when the message came that was taken last, which may have waited since; as `time.monotonic` does.
    to_gadgetron
        Gadgets come behind; others take images only, whatever the settings say.
    spread
        Reconstructs several slices at a time, where they do not depend on each other or on the time; None has the
        engine do them one after the other.

    Raises
    ------
    SettingsError
        If the units of the images cannot be had with the method.
    ModelError
        If the method needs weights that are not there, and there is no fallback.
    CinestreamError
        If the method needs a CT that cannot be used, and its policy is no fallback.
    """

    def __init__(
        self,
        header: ScanHeader,
        settings: Settings,
        engine: Callable[[], Reconstructor],
        problems: Problems | None = None,
        watch: Watch | None = None,
        noise: NoiseSources | None = None,
        *,
        budget: Budget | None = None,
        arrived: Callable[[], float] = time.monotonic,
        to_gadgetron: bool = False,
        spread: Spread | None = None,
    ) -> None:
        self.summary = ScanSummary(problems=problems or Problems())
        if not to_gadgetron:
            settings = _for_others(settings, self.summary.problems)
        if settings.realtime.mode != "off":  # there is no time for it
            settings = apply(settings, {"delay_correction": "off"})
        check_units(settings)
        absent = check_weights(settings)
        if absent:
            self.summary.problems.add(Kind.WEIGHTS, absent, damage=False)
        unmet = unmet_extras(settings)
        if unmet:
            self.summary.problems.add(Kind.EXTRA_SERIES, unmet, damage=False)
        self._header = header
        self._settings = settings
        self._engine = engine
        self._watch = watch
        problems = self.summary.problems
        for number, doubt in enumerate(header.doubts):
            problems.add(Kind.SCAN_HEADER, doubt.text, damage=False, of=str(number), pixels=doubt.pixels)
        whiten = settings.whitening.enabled and not settings.whitening.done
        self._noise = ScanNoise(header, problems, whiten=whiten, sources=noise)
        budget = budget or Budget()
        places = SpokePositions(header, settings.trajectory, problems, settings.realtime.lines_per_frame)
        self._preparation = Preparation(header, problems, self._noise, settings.readouts.oversampling, budget, places)
        self._buffers = slice_buffers(header, settings, problems, budget)
        self._arrived, self._countdown = arrived, Countdown(settings.compute.deadline)
        self._images = ImageMaker(header, settings, problems, budget)
        independent = settings.realtime.mode == "off" and not settings.compute.deadline
        self._spread = spread if independent else None
        self._begun: deque[_Begun] = deque()  # in order; of all but as many as are done at a time the images are made
        self._sorted: set[int] = set()  # encodings of which readouts lie in the buffers, or did
        self._methods: dict[SliceKey, str] = {}  # by which the slices were made last
        self._ct = load_ct(header, settings, self.summary.problems)

    def __call__(self, items: Iterable[Message]) -> Iterator[Message]:
        """Reconstruct; as `groups`, one message after the other."""
        for group in self.groups(items):
            yield from group

    def groups(self, items: Iterable[Message]) -> Iterator[Sequence[Message]]:
        """Reconstruct.

        A stream that breaks, as a damaged file does, is noted and what came before is reconstructed; a slice that fails
        is noted and the others go on. Waveforms are handed through, and to a Gadgetron what `forward` names.

        Parameters
        ----------
        items
            The messages after the header, up to the end of the scan.

        Yields
        ------
        sequence of Message
            All images of a slice, as `emit` wants them, as soon as it is complete; or what is handed through.

        Raises
        ------
        DataError
            At the end, if not one image could be made; a scan of noise readouts alone has none to make.
        ScanStoppedError
            If nobody waits for the images any more, see `recon_core.stopping`.
        """
        try:
            yield from self._groups(iter(items))
        finally:
            self.summary.problems.log_totals()

    def _groups(self, source: Iterator[Message]) -> Iterator[Sequence[Message]]:
        handed_on = (Waveform, *_HANDED_ON[self._settings.images.forward])
        while (item := self._next(source)) is not None:
            if isinstance(item, handed_on):
                yield (item,)
            elif isinstance(item, Bucket):
                yield item.waveforms
            for waveform in _waveforms(item):
                for complete in self._buffers.add_waveform(waveform):
                    yield from self._reconstruct(complete)
            if isinstance(item, _RAW):
                for complete in self._slices(item):
                    yield from self._reconstruct(complete)
            elif isinstance(item, Text):
                logger.info("text from the sender: %s", item.text)
            elif not isinstance(item, handed_on):
                text = f"{type(item).__name__} messages are not used; this pipeline works from readouts"
                self.summary.problems.add(Kind.MESSAGE, text, damage=False)
        for complete in self._sort(self._preparation.flush, "readouts with a mark", 1):
            yield from self._reconstruct(complete)
        for complete in self._buffers.flush():
            yield from self._reconstruct(complete)
        while self._begun:
            yield self._images_of(self._begun.popleft())
        self._check_completeness()

    def _slices(self, item: Readouts | ReconData | Bucket) -> Iterator[CompleteSlice]:
        """Slices that are complete with these readouts, whatever they came in."""
        at = self._arrived()
        runs: Iterable[Readouts] = [item] if isinstance(item, Readouts) else []
        if isinstance(item, ReconData):
            runs = readouts_of_buffers(item, self._header, self.summary.problems)
        elif isinstance(item, Bucket):
            runs = readouts_of_bucket(item)
        for readouts in runs:
            self.summary.readouts += len(readouts)
            self._countdown.came(len(readouts), at)
            for part in self._preparation.portions(readouts):
                prepare = partial(self._preparation, part, gathered=not isinstance(item, Readouts))
                number, encoding = (int(part.headers[name][0]) for name in ("scan_counter", "encoding_space_ref"))
                yield from self._sort(prepare, f"readout {number}", len(part), encoding)

    def _sort(
        self, prepare: Callable[[], Iterable[Readouts]], first: str, count: int, encoding: int | None = None
    ) -> Iterator[CompleteSlice]:
        """Slices that are complete with readouts, which are left out where there is no memory for them.

        So are those that header or settings do not fit, as may be with one encoding of several; but where there are no
        others the scan need not go on.
        """
        done = 0
        try:
            for prepared in prepare():
                yield from self._buffers.add(prepared)
                self._sorted.add(int(prepared.headers["encoding_space_ref"][0]))
                done += len(prepared)
        except (ResourceError, HeaderError, SettingsError) as error:
            is_unfit = not isinstance(error, ResourceError)
            if is_unfit and not self._sorted - {encoding}:
                raise
            text = f"{first} and others are left out: {error}"
            self.summary.problems.add(Kind.UNFIT if is_unfit else Kind.MEMORY, text, damage=True, count=count - done)

    def _next(self, source: Iterator[Message]) -> Message | None:
        try:
            return next(source, None)
        except ScanStoppedError:
            raise
        except CinestreamError as error:  # of a stream, or of a damaged file
            self.summary.problems.add(Kind.STREAM, f"{error}. What came before is reconstructed", damage=True)
            return None

    def _reconstruct(self, complete: CompleteSlice) -> Iterator[Sequence[Image | ImageArray]]:
        """Begin a slice, and give the images of those that have been under way for longest."""
        settings = self._settings
        preview = settings.series.preview
        passes = [(settings, False)]
        if preview not in ("none", settings.method):
            alone = dataclasses.replace(settings.finish, g_factor=False, extra_series="none")
            passes.insert(0, (dataclasses.replace(settings, method=preview, finish=alone), True))
        for one, is_preview in passes:
            self._begun.append(self._begin(complete, one, preview=is_preview))
            while len(self._begun) > (self._spread.count if self._spread else 0):
                yield self._images_of(self._begun.popleft())

    def _begin(self, complete: CompleteSlice, settings: Settings, *, preview: bool) -> _Begun:
        """Begin the reconstruction of a slice; what fails is raised by its result."""
        began, placed = time.perf_counter(), None
        result: Callable[[], Reconstruction]
        try:
            with self.summary.run(_name(complete, settings)):
                engine = self._engine()
                began = time.perf_counter()
                on_grid = complete.cine.trajectory is None
                placed = self._ct.place(complete) if self._ct and on_grid and not preview else None
                complete = self._assembled(complete, settings, engine, placed)
                cine, options = complete.cine, self._in_time(settings)
                spread = self._spread
                result = spread.begin(cine, options) if spread else partial(engine.reconstruct, cine, options)
        except Exception as error:  # noqa: BLE001 - noted where the images would be made
            result = partial(_fail, error)
        return _Begun(complete, settings, preview, placed, result, time.perf_counter() - began)

    def _images_of(self, begun: _Begun) -> Sequence[Image | ImageArray]:
        """Make the images of a slice; a failure is noted, and gives no images."""
        with self.summary.run(_name(begun.complete, begun.settings)):
            images = self._single_images(begun)
        if not begun.preview:
            self.summary.reconstructed += int(begun.complete.lines.sum())
        return images if begun.settings.images.emit == "images" else [*join_series(images)]

    def _single_images(self, begun: _Begun) -> list[Image]:
        """Make one image for every frame of a slice, and the further images."""
        complete, settings, preview, placed, result, seconds = begun
        try:
            began = time.perf_counter()
            reconstruction = result()
            if self._spread:  # which had others to do meanwhile
                began = time.perf_counter() - sum(reconstruction.seconds.values())
            shown = complete
            if self._ct and placed is not None and reconstruction.method == settings.method:
                shown = self._ct.label(complete, placed)
            images: list[Image] = list(self._images.make(shown, reconstruction, second="preview" if preview else ""))
            images += self._further_images(complete, reconstruction, settings)
        except ScanStoppedError:
            raise
        except CinestreamError as error:
            self._note_failure(complete, str(error))
            return []
        except Exception as error:
            logger.exception("unexpected error")
            self._note_failure(complete, f"unexpected error: {type(error).__name__}: {error}")
            return []
        self._count(complete, reconstruction, settings, len(images), seconds + time.perf_counter() - began)
        if not preview:
            self._methods[complete.key] = reconstruction.method
            # beats, sets and repetitions are of one slice
            self.summary.slices = len({(key.encoding, key.slice) for key in self._methods})
            if self._watch is not None:
                self._watch(shown, reconstruction)
        return images

    def _in_time(self, settings: Settings) -> Settings:
        """Give a slice its share of the time until the deadline, where the method takes account of it."""
        if not settings.compute.deadline or not find_method(settings.method).chooses:
            return settings
        share = self._countdown.share(*self._buffers.to_come())
        return dataclasses.replace(settings, compute=dataclasses.replace(settings.compute, deadline=share))

    def _assembled(
        self, complete: CompleteSlice, settings: Settings, engine: Reconstructor, placed: PlacedCt | None
    ) -> CompleteSlice:
        """Give a slice its receiver, its coil maps where it is a window of a series, and its CT.

        Raises
        ------
        DataError
            If it has so few lines that its matrix cannot be meant.
        """
        most, rows = int(complete.lines.max()), complete.cine.kspace.shape[2]
        if most * _LINES_APART < rows:
            text = f"its fullest frame has {most} of {rows} lines, at least one in {_LINES_APART} is needed"
            raise DataError(f"{text}; the encoded matrix may be wrong")
        off_grid, samples = complete.cine.trajectory, most * complete.cine.kspace.shape[3]
        if off_grid is not None and samples * _LINES_APART < math.prod(off_grid.matrix):
            text = f"its fullest frame has {samples} samples for {off_grid.matrix[1]} x {off_grid.matrix[0]} pixels"
            raise DataError(f"{text}, at least one for {_LINES_APART} is needed; the encoded matrix may be wrong")
        whitened = settings.whitening.done and self._is_whitened(complete)
        receiver = self._preparation.receiver(complete.key.encoding, complete.compression, whitened=whitened)
        maps, notes = complete.cine.maps, complete.notes
        if complete.running is not None:
            maps = complete.running.maps(partial(engine.coil_maps, options=settings), complete.cine.calibration)
            notes = (*notes, *complete.running.notes)
        problems, gated = self.summary.problems, complete.gating is not None
        cine = dataclasses.replace(complete.cine, receiver=receiver, maps=maps)
        if placed is not None:
            cine = dataclasses.replace(cine, ct=placed.on_grid, unfit=placed.unfit)
        return dataclasses.replace(
            complete,
            cine=cine,
            notes=(*notes, *problems.left_out.notes(complete.headers, gated=gated), *problems.guesses),
            meta={**complete.meta, "cinestream_noise": self._noise.used},
        )

    def _further_images(
        self, complete: CompleteSlice, reconstruction: Reconstruction, settings: Settings
    ) -> Iterator[Image]:
        """Images of the fallback, with doubtful ones or where they are asked for, and the zero-filled ones."""
        if reconstruction.beside and (_is_doubtful(reconstruction, settings) or "fallback" in settings.finish.extras):
            yield from self._images.make(complete, reconstruction.beside, second="beside")
        if reconstruction.zero_filled:
            yield from self._images.make(complete, reconstruction.zero_filled, second="zero_filled")

    def _count(
        self, complete: CompleteSlice, reconstruction: Reconstruction, settings: Settings, images: int, seconds: float
    ) -> None:
        """Add a slice to the summary and the log."""
        for stage, part in {**reconstruction.seconds, "slice": seconds}.items():
            self.summary.seconds[stage] = self.summary.seconds.get(stage, 0.0) + part
        self.summary.images += images
        # the windows of a series in real time are many, and alike
        news = self._methods.get(complete.key) != reconstruction.method
        name, level = describe(complete.key), logging.INFO if news else logging.DEBUG
        logger.log(level, "%s: %s with %s in %.2f s", name, many(images, "image"), reconstruction.method, seconds)
        as_asked = is_asked_for(settings.method, reconstruction.method) and not _is_doubtful(reconstruction, settings)
        if news and not as_asked:
            level = logging.WARNING
        for note in reconstruction.notes:
            logger.log(level, "%s: %s", name, note)

    def _is_whitened(self, complete: CompleteSlice) -> bool:
        """Check whether it can be true: without noise readouts NoiseAdjust hands the scan on as it came."""
        cine = complete.cine
        if is_unit_noise(cine.kspace, cine.mask):
            return True
        found = f"its standard deviation is near {noise_deviation(cine.kspace, cine.mask):.2g} instead of 1"
        text = f"the noise should be whitened already, but {found}; it is taken as unknown"
        self.summary.problems.add(Kind.WHITENED, f"{text}. The scan may have come without noise readouts", damage=False)
        return False

    def _note_failure(self, complete: CompleteSlice, why: str) -> None:
        text = f"{describe(complete.key)} could not be reconstructed: {why}"
        self.summary.problems.add(Kind.RECONSTRUCTION, text, damage=True)

    def _check_completeness(self) -> None:
        problems = self.summary.problems
        known = "".join(f" {problem}." for problem in problems.damage)
        if not self._buffers.sent:
            noise, dropped = self._preparation.noise_readouts, self._preparation.dropped
            if noise and noise == self.summary.readouts and not problems.damage:
                self._noise.keep(alone=True)  # a measurement that others depend on; no image was to come of it
                return
            found = f"{self.summary.readouts} readouts came, {noise} of noise, {dropped} left out"
            raise DataError(f"no image readouts in the scan, so there is no image: {found}.{known}")
        if not self.summary.images:
            raise DataError(f"no slice could be reconstructed, so there is no image.{known}")
        absent = self._buffers.absent()
        if absent.gaps:
            text = f"slices between others never came ({describe(absent.gaps[0])} first)"
            problems.add(Kind.ABSENT_SLICES, f"{text}; readouts were lost on the way", damage=True)
        elif absent.promised:
            text = f"{absent.promised} of the slices that the header promises never came"
            remedy = "the scan ended early" if absent.cut_short else "the header's limits are larger than the scan"
            problems.add(Kind.ABSENT_SLICES, f"{text}; {remedy}", damage=absent.cut_short)


def _name(complete: CompleteSlice, settings: Settings) -> str:
    return f"{describe(complete.key)} with {settings.method}"


def _fail(error: Exception) -> NoReturn:
    raise error


def _is_doubtful(reconstruction: Reconstruction, settings: Settings) -> bool:
    """Whether the images are doubtful and those of the fallback are to be sent too."""
    return bool(reconstruction.doubts) and settings.outside_range == "beside"


def _waveforms(item: Message) -> tuple[Waveform, ...]:
    if isinstance(item, Waveform):
        return (item,)
    return item.waveforms if isinstance(item, Bucket) else ()


def _for_others(settings: Settings, problems: Problems) -> Settings:
    """Settings for a receiver that is no Gadgetron: finished images, and nothing else."""
    wanted = {"emit": settings.images.emit, "forward": settings.images.forward}
    plain = {"emit": "images", "forward": "none"}
    asked = [f"{name}={value}" for name, value in wanted.items() if value != plain[name]]
    if asked:
        named = " and ".join(asked)
        problems.add(Kind.DOWNSTREAM, f"{named} is for the gadgets of a Gadgetron; images are sent here", damage=False)
    return apply(settings, plain)
