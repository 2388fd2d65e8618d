"""Reconstruction of a raw file into a file of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gadgets.chain import Chain
from gadgets.files.images import ImageFile
from gadgets.files.raw import open_scan
from gadgets.images.maker import CineImage
from gadgets.preparation.noise import NoiseSources
from gadgets.replay.progress import Progress
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image
from recon_core.stopping import stoppable
from recon_core.storage import refuse_same_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gadgets.chain import ScanSummary
    from gadgets.preparation.noise_statistics import KnownNoise
    from gadgets.preparation.noise_store import NoiseStore
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import Message
    from recon_core.data import Reconstruction
    from recon_core.engine import Engine
    from recon_core.spread import Spread


class Collector(Protocol):
    """Gathers what a report or a table needs."""

    def watch(self, complete: CompleteSlice, reconstruction: Reconstruction, /) -> None:
        """Take a slice and its reconstruction."""

    def add_image(self, image: CineImage, /) -> None:
        """Take an image of it."""


def replay(
    source: Path,
    output: Path,
    settings: Settings,
    engine: Callable[[], Engine],
    *,
    group: str = "dataset",
    overwrite: bool = False,
    collector: Collector | None = None,
    noise: KnownNoise | None = None,
    noise_store: NoiseStore | None = None,
    record: Callable[[ScanSummary], str] | None = None,
    progress: bool = True,
    spread: Spread | None = None,
) -> tuple[ScanHeader, ScanSummary]:
    """Reconstruct a raw file.

    Parameters
    ----------
    source
        ISMRMRD HDF5 file, or a stream as ``--save-raw`` leaves it.
    output
        HDF5 file for the images; without `spread` those of a slice are on disk before the next readouts are read.
    settings
        The pipeline's settings.
    engine
        Gives the engine when it is needed.
    group
        HDF5 group of the raw data and of the images.
    overwrite
        Replace an existing output.
    collector
        Gathers what a report or a table needs; may be None.
    noise
        Noise of another file, which goes before that of the scan; may be None.
    noise_store
        Where noise of other measurements is found, and that of this one is kept; may be None.
    record
        Called at the end; what it gives is kept in the output, for `gadgets.files.images.read_record`.
    progress
        Show a progress bar if a person is watching.
    spread
        Reconstructs several slices at a time; None has the engine do them one after the other.

    Returns
    -------
    ScanHeader, ScanSummary
        The scan's header, and what happened.

    Raises
    ------
    CinestreamError
        If the file cannot be read, holds no image readouts, or the output cannot be written.
    """
    refuse_same_file(source, output)
    with open_scan(source, group) as scan:
        header = parse_header(scan.header)
        watch = collector.watch if collector else None
        chain = Chain(header, settings, engine, watch=watch, noise=NoiseSources(noise, noise_store), spread=spread)
        with (
            ImageFile(output, group, header=scan.header, overwrite=overwrite) as images,
            Progress(scan.readouts, chain.summary, shown=progress) as bar,
            stoppable(bar.tick),
        ):
            for item in chain(bar.watching(_flushing(scan.items, images))):
                if isinstance(item, Image):
                    images.append(item)
                if collector is not None and isinstance(item, CineImage):
                    collector.add_image(item)
            if lost := chain.summary.problems.lost_images:
                images.mark_incomplete("; ".join(lost))
            if record is not None:
                images.keep_record(record(chain.summary))
    return header, chain.summary


def _flushing(items: Iterable[Message], images: ImageFile) -> Iterator[Message]:
    """Put the images of a slice on disk before more is read, so that a kill loses none of them."""
    for item in items:
        images.flush()
        yield item
