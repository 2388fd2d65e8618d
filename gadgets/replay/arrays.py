"""The Python interface for scans: a raw file or a stream in, arrays out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets.chain import Chain
from gadgets.files.noise import read_noise
from gadgets.files.raw import open_scan
from gadgets.images.collection import sort_images
from gadgets.images.maker import CineImage
from gadgets.preparation.noise import NoiseSources
from gadgets.replay.sources import header_of, messages_of
from gadgets.settings.pipelines import settings_of
from gadgets.settings.settings import apply
from gadgets.wire.header import parse_header
from gadgets.wire.vendor import tick_length
from recon_core.api import shared_engine
from recon_core.errors import ReconstructionWarning
from recon_core.methods import is_asked_for
from recon_core.own_methods import allow_methods

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gadgets.images.collection import Loop, Series
    from gadgets.settings.settings import Settings
    from gadgets.wire.messages import Message


@dataclass(frozen=True)
class SliceImages:
    """The frames of one slice, in one series."""

    image: NDArray[Any]
    """``(frame, y, x)`` in the units of the images that a scanner gets: float32 magnitudes, or complex64 with
    ``output="complex"``; in frame order."""
    slice: int
    """Counter of the slice."""
    series: str
    """Name of the series."""
    kind: str
    """Empty for the images that were asked for, else what they are instead, such as ``preview`` or ``g_factor``."""
    method: str
    """The method that made them."""
    units: str
    """``relative``, or ``snr``."""
    comment: str
    """What was done, and what differed from what was asked, as the image comment says it."""
    frame_time: float | None
    """Time from frame to frame in ms; None where it is not known."""
    rr: float | None
    """RR interval in ms; None where it is not known."""
    loop: Loop
    """All else that the images know: other counters, geometry, times and attributes of every frame."""

    def __str__(self) -> str:
        """Slice, series, size and what was done."""
        frames, rows, columns = self.image.shape
        return f"slice {self.slice}, {self.series}: {frames} frames of {rows} x {columns} pixels; {self.comment}"


@dataclass(frozen=True)
class ScanImages:
    """All images of a scan, and what happened on the way; iterates over its slices."""

    slices: tuple[SliceImages, ...]
    """By series, then by repetition, set, contrast and slice."""
    problems: tuple[str, ...]
    """What went wrong or was noticed."""
    seconds: dict[str, float]
    """Wall time by stage, summed over slices."""
    header: str
    """ISMRMRD header of the scan, as XML."""

    def __iter__(self) -> Iterator[SliceImages]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> SliceImages:
        return self.slices[index]


def reconstruct_file(
    path: str | Path,
    pipeline: str | Path = "cg_sense",
    *,
    group: str = "dataset",
    noise: str | Path | None = None,
    **settings: object,
) -> ScanImages:
    """Reconstruct a raw file as ``cinestream replay`` does, into arrays.

    Parameters
    ----------
    path
        ISMRMRD HDF5 file, or a stream as ``--save-raw`` leaves it.
    pipeline
        Name of a pipeline, as ``cinestream pipelines`` lists them, or an XML file.
    group
        HDF5 group of the raw data.
    noise
        Raw file with noise readouts, which go before those of the scan.
    **settings
        Settings that differ from those of the pipeline, such as ``output="complex"`` or ``iterations=20``;
        ``cinestream pipelines`` lists them.

    Returns
    -------
    ScanImages
        Slices in order, with the frames of each in one array.

    Raises
    ------
    SettingsError
        If there is no such pipeline or setting, or a value is not allowed.
    CinestreamError
        If the file cannot be read, or not one image could be made.

    Warns
    -----
    ReconstructionWarning
        If data were lost, or another method than the asked one made images.

    Examples
    --------
    >>> from pathlib import Path
    >>> from gadgets import reconstruct_file
    >>> from gadgets.simulation import ScanPlan, write_simulation
    >>> plan = ScanPlan(matrix_x=64, matrix_y=48, frames=6, slices=2, coils=4, acceleration=2)
    >>> truth = write_simulation(plan, Path("two_slices.h5"))
    >>> scan = reconstruct_file("two_slices.h5", "zero_filled", output="complex")
    >>> [cine.image.shape for cine in scan], scan[0].image.dtype
    ([(6, 48, 64), (6, 48, 64)], dtype('complex64'))
    >>> print(scan[1])
    slice 1, zero_filled: 6 frames of 48 x 64 pixels; cinestream zero_filled
    >>> scan.problems
    ()
    """
    allow_methods()
    chosen = apply(settings_of(pipeline), settings)
    with open_scan(Path(path), group) as scan:
        maker = _ArrayMaker(scan.header, chosen, noise)
        slices = tuple(maker.slices(item for items in maker.chain.groups(scan.items) for item in items))
        maker.warn(slices)
        summary = maker.chain.summary
        return ScanImages(slices, tuple(map(str, summary.problems)), summary.seconds, scan.header)


def reconstruct_stream(
    source: socket.socket | Any,  # noqa: ANN401 - see below
    pipeline: str | Path = "cg_sense",
    *,
    header: str = "",
    noise: str | Path | None = None,
    **settings: object,
) -> Iterator[SliceImages]:
    """Reconstruct a stream, slice by slice as it comes.

    Nothing is sent back to the other end of a socket; a scanner or a Gadgetron wants ``cinestream serve``.

    Parameters
    ----------
    source
        Where the messages come from: a connected socket, a binary file, or anything to iterate over that gives
        messages of `gadgets.wire.messages`, or acquisitions and waveforms of the package ``ismrmrd``. A configuration
        that the stream carries is not used.
    pipeline, noise, **settings
        As for `reconstruct_file`.
    header
        ISMRMRD header of the scan, as XML. Empty takes that of the stream, which comes before the readouts.

    Yields
    ------
    SliceImages
        The frames of a slice as soon as all its readouts have come; in real time (``realtime="sliding"``) those of
        every window. Further series of the same slice follow it.

    Raises
    ------
    SettingsError
        If there is no such pipeline or setting, or a value is not allowed; at once.
    CinestreamError
        If the header cannot be read, or not one image could be made.

    Warns
    -----
    ReconstructionWarning
        As `reconstruct_file`.

    Examples
    --------
    >>> from gadgets import reconstruct_stream
    >>> from gadgets.simulation import ScanPlan, simulate
    >>> scan = simulate(ScanPlan(matrix_x=64, matrix_y=48, frames=6, slices=2, coils=4, acceleration=2))
    >>> for cine in reconstruct_stream(scan.items(), "cg_sense", header=scan.header):
    ...     print(cine.slice, cine.image.shape)
    0 (6, 48, 64)
    1 (6, 48, 64)
    """
    allow_methods()
    chosen = apply(settings_of(pipeline), settings)
    return _stream(source, chosen, header, noise)


def _stream(source: Any, settings: Settings, header: str, noise: str | Path | None) -> Iterator[SliceImages]:  # noqa: ANN401
    items = messages_of(source)
    maker = _ArrayMaker(header or header_of(items), settings, noise)
    for group in maker.chain.groups(items):
        slices = [*maker.slices(group)]
        maker.warn(slices)
        yield from slices
    maker.warn([])


class _ArrayMaker:
    """The chain of a scan, and arrays of its images.

    Parameters
    ----------
    header
        As XML.
    settings
        Of the scan.
    noise
        File with noise readouts, or None.
    """

    def __init__(self, header: str, settings: Settings, noise: str | Path | None) -> None:
        scan = parse_header(header)
        known = None if noise is None else read_noise(Path(noise))
        self.chain = Chain(scan, settings, shared_engine, noise=NoiseSources(known))
        self._settings = settings
        self._tick = tick_length(scan.vendor, settings.readouts.stamp_tick)
        self._warned: set[str] = set()

    def slices(self, items: Iterable[Message]) -> Iterator[SliceImages]:
        """The images among messages, sorted by series, slice and frame."""
        images: dict[int, list[CineImage]] = {}
        for item in items:
            if isinstance(item, CineImage):
                images.setdefault(int(item.header["image_series_index"]), []).append(item)
        for series in sort_images(images, self._tick):
            for loop in series.loops:
                yield self._slice(series, loop, images[series.number][0].kind)

    def _slice(self, series: Series, loop: Loop, kind: str) -> SliceImages:
        def text(name: str) -> str:
            return " ".join(loop.meta[0].get(name, ()))

        return SliceImages(
            image=loop.pixels,
            slice=loop.key.slice,
            series=series.name,
            kind=kind,
            method=text("cinestream_method"),
            units=text("cinestream_units"),
            comment=text("ImageComment"),
            frame_time=series.frame_time,
            rr=series.rr,
            loop=loop,
        )

    def warn(self, slices: Iterable[SliceImages]) -> None:
        """Warn, once each, of data that were lost and of methods that took over; for the caller of our caller."""
        texts = {
            str(kind): problem.text for kind, problem in self.chain.summary.problems.kinds.items() if problem.damage
        }
        for cine in slices:
            if not cine.kind and not is_asked_for(self._settings.method, cine.method):
                texts[f"method {cine.method}"] = f"images are not of {self._settings.method}: {cine.comment}"
        for name, text in texts.items():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(text, ReconstructionWarning, stacklevel=3)
