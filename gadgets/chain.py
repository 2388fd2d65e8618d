"""The whole reconstruction of one scan as a generator: messages of a stream in, images out.

readouts -> prepared readouts -> complete slices -> reconstructions -> images.

File, pipe and socket run this very chain.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gadgets.buffer import SliceBuffers, describe
from gadgets.ct import load_ct
from gadgets.gating import Gate
from gadgets.images import ImageMaker
from gadgets.pipeline import check_weights
from gadgets.preparation import Preparation
from gadgets.problems import Problems
from gadgets.protocol import Image, Readouts, Text, Waveform
from recon_core.errors import CinestreamError, DataError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gadgets.buffer import CompleteSlice
    from gadgets.header import ScanHeader
    from gadgets.pipeline import Settings
    from gadgets.protocol import Message
    from recon_core.data import Reconstruction
    from recon_core.engine import Engine

logger = logging.getLogger("cinestream")


@dataclass
class ScanSummary:
    """What happened during a scan, for the log and the report.

    Parameters
    ----------
    readouts
        How many readouts came.
    images
        How many images were made.
    seconds
        Wall time by stage, summed over slices.
    problems
        What went wrong or was noticed.
    """

    readouts: int = 0
    images: int = 0
    slices: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)


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

    Raises
    ------
    ModelError
        If the method needs weights that are not there, and there is no fallback.
    CinestreamError
        If the method needs a CT that cannot be used, and its policy is no fallback.
    """

    def __init__(
        self,
        header: ScanHeader,
        settings: Settings,
        engine: Callable[[], Engine],
        problems: Problems | None = None,
        watch: Callable[[CompleteSlice, Reconstruction], None] | None = None,
    ) -> None:
        self.summary = ScanSummary(problems=problems or Problems())
        absent = check_weights(settings)
        if absent:
            self.summary.problems.add("weights", absent, damage=False)
        self._header = header
        self._settings = settings
        self._engine = engine
        self._watch = watch
        self._preparation = Preparation(header, self.summary.problems, whiten=settings.whiten)
        gate = self._gate = None if settings.gating == "counter" else Gate(header, settings, self.summary.problems)
        self._buffers = SliceBuffers(
            header, self.summary.problems, settings.time_axis, settings.virtual_coils, settings.coil_energy, gate
        )
        self._images = ImageMaker(header, settings)
        self._ct = load_ct(header, settings, self.summary.problems)

    def __call__(self, items: Iterable[Message]) -> Iterator[Image | Waveform]:
        """Reconstruct.

        A stream that breaks is noted and what came before is reconstructed; a slice that fails is noted and the others
        go on. Waveforms are handed through.

        Parameters
        ----------
        items
            The messages after the header, up to the end of the scan.

        Yields
        ------
        Image or Waveform
            Images of every slice as soon as it is complete.

        Raises
        ------
        DataError
            At the end, if not one image could be made.
        """
        source = iter(items)
        while (item := self._next(source)) is not None:
            if isinstance(item, Readouts):
                self.summary.readouts += len(item)
                for prepared in self._preparation(item):
                    for complete in self._buffers.add(prepared):
                        yield from self._reconstruct(complete)
            elif isinstance(item, Waveform):
                yield item
                if self._gate is not None:
                    self._gate.note(item)
                    for complete in self._buffers.resume():
                        yield from self._reconstruct(complete)
            elif isinstance(item, Text):
                logger.info("text from the sender: %s", item.text)
            else:
                text = f"{type(item).__name__} messages are not used; this pipeline works from readouts"
                self.summary.problems.add("message", text, damage=False)
        for complete in self._buffers.flush():
            yield from self._reconstruct(complete)
        self._check_completeness()

    def _next(self, source: Iterator[Message]) -> Message | None:
        try:
            return next(source, None)
        except ProtocolError as error:
            self.summary.problems.add("stream", f"{error}. What came before is reconstructed", damage=True)
            return None

    def _reconstruct(self, complete: CompleteSlice) -> Iterator[Image]:
        settings = self._settings
        if settings.preview not in ("none", settings.method):
            ahead = dataclasses.replace(settings, method=settings.preview, g_factor=False)
            yield from self._images_of(complete, ahead, preview=True)
        yield from self._images_of(complete, settings)

    def _images_of(self, complete: CompleteSlice, settings: Settings, *, preview: bool = False) -> list[Image]:
        """Reconstruct a slice; a failure is noted, and gives no images."""
        try:
            engine = self._engine()
            begin = time.perf_counter()
            colouring = self._preparation.colouring
            if colouring is not None and complete.compression is not None:
                colouring = colouring @ complete.compression.conj().T
            columns = self._preparation.columns(complete.key.encoding)
            cine = dataclasses.replace(complete.cine, colouring=colouring, columns=columns)
            placed = self._ct.place(complete) if self._ct and not preview else None
            if placed is not None:
                cine = dataclasses.replace(cine, ct=placed.image, ct_cover=placed.cover)
            complete = dataclasses.replace(complete, cine=cine)
            reconstruction = engine.reconstruct(cine, settings)
            # first, so that the scale of the scan is not that of a doubtful image
            beside = reconstruction.beside
            further = [] if beside is None else list(self._images.make(complete, beside, second="beside"))
            if self._ct and placed is not None and reconstruction.method == settings.method:
                complete = self._ct.label(complete, placed)
            images = list(self._images.make(complete, reconstruction, second="preview" if preview else ""))
            images += further
        except CinestreamError as error:
            self._note_failure(complete, str(error))
            return []
        except Exception as error:
            logger.exception("unexpected error")
            self._note_failure(complete, f"unexpected error: {type(error).__name__}: {error}")
            return []
        for stage, seconds in {**reconstruction.seconds, "slice": time.perf_counter() - begin}.items():
            self.summary.seconds[stage] = self.summary.seconds.get(stage, 0.0) + seconds
        self.summary.images += len(images)
        logger.info(
            "%s: %d frames with %s in %.2f s",
            describe(complete.key),
            len(images),
            reconstruction.method,
            time.perf_counter() - begin,
        )
        as_asked = reconstruction.method == settings.method and reconstruction.beside is None
        for note in reconstruction.notes:
            logger.log(logging.INFO if as_asked else logging.WARNING, "%s: %s", describe(complete.key), note)
        if not preview:
            self.summary.slices += 1
            if self._watch is not None:
                self._watch(complete, reconstruction)
        return images

    def _note_failure(self, complete: CompleteSlice, why: str) -> None:
        text = f"{describe(complete.key)} could not be reconstructed: {why}"
        self.summary.problems.add("reconstruction", text, damage=True)

    def _check_completeness(self) -> None:
        problems = self.summary.problems
        known = "".join(f" {problem}." for problem in problems.damage)
        if not self._buffers.sent:
            noise, dropped = self._preparation.noise_readouts, self._preparation.dropped
            found = f"{self.summary.readouts} readouts came, {noise} of noise, {dropped} left out"
            raise DataError(f"no image readouts in the scan, so there is no image: {found}.{known}")
        if not self.summary.images:
            raise DataError(f"no slice could be reconstructed, so there is no image.{known}")
        absent, first = self._buffers.absent()
        if absent:
            text = f"{absent} of the slices that the header promises never came ({describe(first[0])} first)"
            remedy = "the scan ended early, or the header's limits are too large"
            problems.add("absent slices", f"{text}; {remedy}", damage=True)
