"""From readouts as they come to readouts that can be used: sorted out, whitened, on the readout grid.

Order: drop what is no image data, check what is, turn reversed readouts around, cut the discarded samples, decorrelate
the coils with the noise readouts, place the samples around the k-space centre (asymmetric echo), and remove the readout
oversampling, but for readouts with gaps. Everything works on runs of readouts at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadgets.preparation.noise_statistics import MOST_COILS
from gadgets.preparation.spokes import SpokePositions
from gadgets.problems import Kind
from gadgets.wire.flags import carries_image, is_reference, may_carry_image
from gadgets.wire.messages import AcquisitionFlag, Readouts
from gadgets.wire.vendor import find_vendor
from recon_core.budget import Budget
from recon_core.data import Receiver
from recon_core.errors import DataError, HeaderError
from recon_core.off_grid.trajectory import leave_kspace
from recon_core.points.find import are_gapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gadgets.preparation.noise import ScanNoise
    from gadgets.problems import Problems
    from gadgets.wire.header import Encoding, ScanHeader

_PORTION_BYTES = 64 << 20
_ACROSS = 0.1  # slope of a readout that is none of a line of the grid, whatever delays and rounding do
_SMALLEST_VALUE, _LARGEST_VALUE = 1e-30, 1e15  # of the largest sample; squares must not overflow in float32
_MOST_STRAY = 32  # readouts in front that wait for one which fits the header
_SAMPLE_BYTES = np.dtype(np.complex64).itemsize


@dataclass(frozen=True)
class ReadoutGrid:
    """Where the samples of a readout go."""

    encoded: int
    """Columns of the measured grid, with oversampling."""
    kept: int
    """Columns that remain; fewer than `encoded` when oversampling is removed."""

    @classmethod
    def of(cls, encoding: Encoding, samples: int, center: int, oversampling: str = "auto") -> ReadoutGrid:
        """The grid of an encoding, seen together with its first readout.

        Some senders remove the oversampling but leave the header as it was (`oversampling` ``removed``, or
        ``present`` where they do not). ``auto`` takes a symmetric readout of just the size that removal would leave as
        it is; `sender_habit` says of whom that is not to be thought. ``kept`` leaves it to the image.
        """
        encoded, (wide, narrow) = encoding.encoded.matrix[0], encoding.widths
        if oversampling == "kept":
            return cls(encoded, encoded)
        kept = max(1, round(encoded * narrow / wide)) if wide > narrow > 0 else encoded
        symmetric = center == 0 or center >= samples or abs(2 * center - samples) <= 1
        removed = samples == kept and symmetric
        if oversampling != "auto":
            removed = oversampling == "removed" and samples <= kept
        return cls(kept if removed else encoded, kept)


def sender_habit(header: ScanHeader, oversampling: str) -> str:
    """What is to be believed of the oversampling: the setting, or of some vendors that it is always ``present``."""
    keeps = oversampling == "auto" and find_vendor(header.vendor).keeps_oversampling
    return "present" if keeps else oversampling


class Preparation:
    """Prepares the readouts of one scan.

    Parameters
    ----------
    header
        The scan's header.
    problems
        Where to note what is dropped.
    noise
        Takes the noise readouts and gives the matrix that whitens the others.
    oversampling
        ``present`` or ``removed`` by the sender, where the header has some, or ``kept`` until the image; ``auto`` looks
        at the readouts.
    budget
        Memory for readouts on their grid; None takes what a process may have.
    places
        Where the samples of readouts lie that follow no grid; None takes what they say.
    """

    def __init__(
        self,
        header: ScanHeader,
        problems: Problems,
        noise: ScanNoise,
        oversampling: str = "auto",
        budget: Budget | None = None,
        places: SpokePositions | None = None,
    ) -> None:
        self._budget = budget or Budget()
        self._places = places or SpokePositions(header, None, problems)
        self._off_grid_samples: dict[int, int] = {}  # after the discarded ones, by encoding
        self._header = header
        self._oversampling = oversampling
        self._gathered = False
        self._problems = problems
        self._noise = noise
        self._noise_is_over = False
        self._whitening: NDArray[np.complex64] | None = None
        #: Makes readouts ``(receive coil, coil)`` of whitened ones, of the coils that are used; None without whitening.
        self.colouring: NDArray[np.complex64] | None = None
        self._coils = 0
        self._shapes: dict[int, tuple[int, ReadoutGrid]] = {}  # samples and grid by encoding
        self._partitions: dict[int, int] = {}  # by encoding
        self._marked: list[Readouts] | None = []  # until image data without a mark come
        self._nowhere: list[Readouts] | None = []  # of no encoding of the header, until one of its only one comes
        self._waiting: dict[int, list[Readouts]] = {}  # that may be strays in front of others, by encoding
        self._reference: list[Readouts] = []  # with other coils than the header says, until image lines come
        self._covered: dict[int, _Coverage] = {}  # by encoding
        self.noise_readouts = 0
        self.dropped = 0

    def receiver(
        self, encoding: int, compression: NDArray[np.complex64] | None = None, *, whitened: bool = False
    ) -> Receiver:
        """What is known of the coils of the prepared readouts of an encoding.

        Parameters
        ----------
        encoding
            Number of the encoding.
        compression
            ``(virtual coil, coil)`` complex64 that made the coils of the slice from those of the readouts, or None.
        whitened
            The readouts came whitened.
        """
        colouring = self.colouring
        if colouring is not None and compression is not None:
            colouring = colouring @ compression.conj().T
        scaled = self._noise.scaled or whitened
        return Receiver(colouring, self.columns(encoding), whitened=whitened, scaled=scaled)

    def columns(self, encoding: int) -> NDArray[np.bool_] | None:
        """Columns ``(kx,)`` of the prepared readouts of an encoding that most of them measured; None for all."""
        columns = self._covered[encoding].columns() if encoding in self._covered else np.ones(1, np.bool_)
        # none that most have: readouts that differ too much to say anything
        return None if columns.all() or not columns.any() else columns

    def portions(self, readouts: Readouts) -> Iterator[Readouts]:
        """Cut a run into parts of one encoding that stay small on their grid: few samples may be many columns."""
        widest = max(encoding.encoded.matrix[0] for encoding in self._header.encodings)
        size = max(1, _PORTION_BYTES // (_SAMPLE_BYTES * widest * max(1, readouts.data.shape[1])))
        turns = np.flatnonzero(np.diff(readouts.headers["encoding_space_ref"])) + 1
        for first, last in itertools.pairwise([0, *turns.tolist(), len(readouts)]):
            for begin in range(first, last, size):
                yield readouts[begin : min(begin + size, last)]

    def __call__(self, readouts: Readouts, *, gathered: bool = False) -> list[Readouts]:
        """Prepare a run of equally shaped readouts.

        Parameters
        ----------
        readouts
            ``(readout, coil, sample)`` as received.
        gathered
            They come from gadgets in front, which may have removed the oversampling.

        Returns
        -------
        list of Readouts
            Those that carry image or calibration data, in order, ``(readout, coil, kx)``: k-space centre at
            ``kx//2``, without oversampling. Of one encoding each; usually one element or none.

        Raises
        ------
        ResourceError
            If there is no memory for them.
        """
        self._gathered = gathered
        flags = readouts.headers["flags"]
        noise = readouts.flagged(AcquisitionFlag.NOISE)
        wanted = carries_image(flags)
        self.noise_readouts += int(np.count_nonzero(noise))
        if noise.any():
            # What is whitened must not depend on how the stream was cut into runs: noise counts up to the first image.
            begin = int(np.argmax(wanted)) if wanted.any() else len(readouts)
            if not self._noise_is_over:
                self._noise.add(readouts[:begin][noise[:begin]])
        self._noise_is_over |= bool(wanted.any())
        self._keep_marked(readouts, may_carry_image(flags), wanted & ~is_reference(flags))
        self.dropped += int(np.count_nonzero(~noise & ~wanted))
        return self._prepared(readouts if wanted.all() else readouts[wanted])

    def flush(self) -> list[Readouts]:
        """Prepare what has waited for the end of the scan.

        Readouts with a mark such as that of the surface coil correction are image data where there are no others. Of
        several coil counts that of the header is taken, else the most frequent: the others are of a prescan. Readouts
        of another encoding than the only one of the header are of that one where there are no others.
        """
        marked, self._marked = self._marked or [], None
        prepared = self._flush_marked(marked) if marked else []
        nowhere, self._nowhere = self._nowhere or [], None
        if nowhere:
            text = f"the readouts are of encoding {nowhere[0].headers['encoding_space_ref'][0]}, and the header has one"
            text += ", which is number 0: they are taken as of that one, at the end of the scan"
            self._problems.add(Kind.ENCODING, text, damage=False)
        for run in nowhere:
            run.headers["encoding_space_ref"] = 0
            prepared += self._prepared(run)
        waiting, self._waiting = self._waiting, {}
        held, self._reference = self._reference, []
        return prepared + self._ready([*(run for runs in waiting.values() for run in runs), *held])

    def _flush_marked(self, marked: list[Readouts]) -> list[Readouts]:
        counts: dict[int, int] = {}
        for run in marked:
            counts[run.data.shape[1]] = counts.get(run.data.shape[1], 0) + len(run)
        most = max(counts, key=lambda coils: (coils == self._header.receiver_channels, counts[coils]))
        marked = [run for run in marked if run.data.shape[1] == most]
        self.dropped -= sum(len(run) for run in marked)
        return [prepared for run in marked for prepared in self._prepared(run)]

    def _keep_marked(self, readouts: Readouts, marked: NDArray[np.bool_], image: NDArray[np.bool_]) -> None:
        """Keep readouts with a mark until the first image data without one."""
        if image.any():
            self._marked = None
        elif self._marked is not None and marked.any():
            run = readouts[marked]
            self._budget.keep(run.data, "the readouts with a mark that wait for others without")
            self._marked.append(run)

    def _prepared(self, readouts: Readouts) -> list[Readouts]:
        spaces = readouts.headers["encoding_space_ref"]
        edges = np.flatnonzero(spaces[1:] != spaces[:-1]) + 1
        parts = (
            readouts[int(begin) : int(end)] for begin, end in zip([0, *edges], [*edges, len(readouts)], strict=True)
        )
        return self._ready(run for part in parts if len(part) for run in self._in_turn(part))

    def _in_turn(self, part: Readouts) -> Iterator[Readouts]:
        """Runs of one encoding in order; in front of all others some wait that may be strays without a mark.

        The first readout fixes the coils and the length of all, so that one which fits the header has to be it. Of
        reference lines it fixes the coils only.
        """
        space = int(part.headers["encoding_space_ref"][0])
        if space >= len(self._header.encodings) == 1 and self._nowhere is not None:
            self._budget.keep(part.data, "the readouts of another encoding that wait for those of the header's")
            self._nowhere.append(part[np.ones(len(part), np.bool_)])
            return
        nowhere, self._nowhere = self._nowhere or [], None
        yield from nowhere
        reference = bool(is_reference(part.headers["flags"]).all())
        if reference and not self._coils and not self._gathered and self._has_other_coils(part):
            self._budget.keep(part.data, "the reference lines that wait for image lines")
            self._reference.append(part[np.ones(len(part), np.bool_)])
            return
        if space in self._shapes or reference:
            yield part
            return
        waiting = self._waiting.pop(space, [])
        if self._may_be_stray(part) and (not waiting or waiting[0].data.shape[1:] == part.data.shape[1:]):
            waiting.append(part[np.ones(len(part), np.bool_)])
            if sum(map(len, waiting)) < _MOST_STRAY:
                self._waiting[space] = waiting
                return
            part = waiting.pop()
        yield from [*waiting, part] if self._may_be_stray(part) else [part, *waiting]
        held, self._reference = self._reference, []
        yield from held

    def _has_other_coils(self, part: Readouts) -> bool:
        """Whether readouts have other coils than the header says, where it does."""
        coils = part.data.shape[1]
        return bool(coils != (self._header.receiver_channels or coils))

    def _may_be_stray(self, part: Readouts) -> bool:
        """Whether readouts have other coils than the header says, or neither its length nor a centre of their own."""
        space, (coils, samples) = int(part.headers["encoding_space_ref"][0]), part.data.shape[1:]
        if not coils * samples or space >= len(self._header.encodings) or self._gathered:
            return False
        encoding = self._header.encodings[space]
        if encoding.off_grid or encoding.refusal:
            return False
        if self._has_other_coils(part):
            return True
        center = part.headers["center_sample"]
        kept = ReadoutGrid.of(encoding, samples, 0).kept
        return samples not in (encoding.encoded.matrix[0], kept) and bool(((center == 0) | (center >= samples)).all())

    def _ready(self, parts: Iterable[Readouts]) -> list[Readouts]:
        prepared = []
        for run in (piece for part in parts for piece in self._around_lost_spokes(part)):
            part, grid = self._checked(run)
            if grid is not None:
                size = f"{part.data.shape[1]} coils x {grid.encoded} columns"
                with self._budget.lent(3 * len(part) * part.data.shape[1] * grid.encoded * _SAMPLE_BYTES, size):
                    if self._header.encodings[int(part.headers["encoding_space_ref"][0])].off_grid:
                        prepared.extend(self._off_grid(part))
                    else:
                        prepared.append(self._on_grid(part, grid))
        return prepared

    def _around_lost_spokes(self, part: Readouts) -> Iterator[Readouts]:
        """Runs off the grid cut where readouts are broken: those behind them are still of the angles that they are."""
        space = int(part.headers["encoding_space_ref"][0])
        if space >= len(self._header.encodings) or not self._header.encodings[space].off_grid:
            yield part
            return
        usable = _finite(part) & bool(part.data.size)
        edges = np.flatnonzero(np.diff(usable)) + 1
        for begin, end in itertools.pairwise([0, *edges.tolist(), len(part)]):
            piece = part[begin:end]
            yield piece
            if not usable[begin]:  # others that are left out are none of the scan
                self._places.lost(piece)

    def _checked(self, readouts: Readouts) -> tuple[Readouts, ReadoutGrid | None]:
        """Drop readouts that do not fit the scan; what remains has finite values, its grid says where they go."""
        coils, samples = readouts.data.shape[1:]
        if coils > MOST_COILS:
            text = f"has {coils} coils; at most {MOST_COILS} are believed"
            return self._without(readouts, np.ones(len(readouts), np.bool_), Kind.COILS, text), None
        discarded = readouts.headers["discard_pre"].astype(np.int64) + readouts.headers["discard_post"]
        if not coils * samples:  # some senders end a scan so
            readouts = readouts[~readouts.flagged(AcquisitionFlag.LAST_IN_MEASUREMENT)]
            discarded = np.zeros(len(readouts), np.int64)
        readouts = self._without(readouts, discarded >= samples * min(1, coils), Kind.EMPTY_READOUT, "holds no samples")
        readouts = self._without(
            readouts, ~_finite(readouts), Kind.VALUES, "holds values that are not finite, or that no receiver gives"
        )
        readouts = self._of_usable_encoding(readouts)
        if not len(readouts):
            return readouts, None
        if not self._coils:
            self._begin(readouts)
        if coils != self._coils:
            text = f"has {coils} coils, expected {self._coils} as the first image readout had"
            text += " (check which the sender selects)"
            return self._without(readouts, np.ones(len(readouts), np.bool_), Kind.COILS, text), None
        # a reference scan may have its own length; it is placed by its own centre
        space = int(readouts.headers["encoding_space_ref"][0])
        reference = is_reference(readouts.headers["flags"])
        if space not in self._shapes and not reference.all():
            self._shapes[space] = samples, self._grid(readouts[~reference])
        expected, grid = self._shapes.get(space) or (samples, self._grid(readouts))
        if samples != expected:
            text = f"has {samples} samples, expected {expected} as the first image readout had"
            wrong = ~reference | (samples > grid.encoded)
            readouts = self._without(readouts, np.asarray(wrong), Kind.SAMPLES, text)
        return readouts, grid if len(readouts) else None

    def _of_usable_encoding(self, readouts: Readouts) -> Readouts:
        """Leave out readouts of an encoding, or of a partition, of which no images can be made."""
        if not len(readouts):
            return readouts
        space = int(readouts.headers["encoding_space_ref"][0])
        everything = np.ones(len(readouts), np.bool_)
        if space >= len(self._header.encodings):
            text = f"belongs to encoding {space}, the header has {len(self._header.encodings)}"
            return self._without(readouts, everything, Kind.ENCODING, text)
        if self._header.refusal:
            raise HeaderError(self._header.refusal)
        encoding = self._header.encodings[space]
        if encoding.refusal:
            reference = is_reference(readouts.headers["flags"])
            self.dropped += int(np.count_nonzero(reference))
            readouts = readouts[~reference]
            return self._without(readouts, everything[~reference], Kind.ENCODING, f"cannot be used: {encoding.refusal}")
        partition = readouts.headers["idx"]["kspace_encode_step_2"]
        other = np.asarray(partition != self._partitions.setdefault(space, int(partition[0])))
        if other.any() and encoding.encoded.matrix[2] > 1:
            text = f"encoding {space} has {encoding.encoded.matrix[2]} partitions, and the readouts count them"
            raise HeaderError(f"{text}; only 2-D slices can be reconstructed for now")
        text = f"is of partition {partition[np.argmax(other)]}, those before of {self._partitions[space]}, and only "
        return self._without(readouts, other, Kind.PARTITION, f"{text}2-D slices can be reconstructed for now")

    def _grid(self, readouts: Readouts) -> ReadoutGrid:
        header, samples = readouts.headers[0], readouts.data.shape[2]
        encoding = self._header.encodings[header["encoding_space_ref"]]
        if encoding.off_grid:
            return ReadoutGrid(samples, samples)
        center = int(header["center_sample"])
        wanted = self._oversampling if self._gathered else sender_habit(self._header, self._oversampling)
        grid = ReadoutGrid.of(encoding, samples, center, wanted)
        if self._oversampling == "auto" and not self._gathered:
            if grid.kept < grid.encoded and are_gapped(readouts.data):
                text = "the readouts have gaps, so that their oversampling stays until the image"
                self._problems.add(Kind.OVERSAMPLING, text, damage=False, pixels=True)
                return ReadoutGrid.of(encoding, samples, center, "kept")
            self._say_guess(encoding, samples, grid, ReadoutGrid.of(encoding, samples, center))
        used = samples - int(header["discard_pre"]) - int(header["discard_post"])
        if used > grid.encoded:
            text = f"the readouts have {used} samples and the encoded matrix {grid.encoded} columns: the outermost"
            self._problems.add(Kind.SAMPLES, f"{text} samples are left out", damage=False, pixels=True)
        if self._oversampling == "removed" and grid.kept < grid.encoded:
            text = f"oversampling=removed, but the readouts have {samples} samples and the image {grid.kept} columns"
            self._problems.add(Kind.OVERSAMPLING, f"{text}; they are taken as oversampled", damage=False)
        return grid

    def _say_guess(self, encoding: Encoding, samples: int, grid: ReadoutGrid, seen: ReadoutGrid) -> None:
        """Say what was made of readouts that look as if their oversampling had been removed."""
        if seen.encoded == encoding.encoded.matrix[0]:
            return
        text = f"the readouts have {samples} samples, as many as the {encoding.encoded.matrix[0]} of the header without"
        if grid == seen:
            text += " oversampling: it is taken as removed by the sender; oversampling=present says otherwise"
        else:
            text += f" oversampling, but the converter of {self._header.vendor} removes none: they are taken as"
            text += " oversampled, and as interpolated; oversampling=removed says otherwise"
        self._problems.add(Kind.OVERSAMPLING, text, damage=False, pixels=True)

    def _without(self, readouts: Readouts, bad: NDArray[np.bool_], kind: Kind, text: str) -> Readouts:
        """Leave out what is bad, and note it."""
        count = int(np.count_nonzero(bad))
        if not count:
            return readouts
        self.dropped += count
        headers = readouts.headers[bad]
        self._problems.left_out.add(headers[~is_reference(headers["flags"])])
        name = f"readout {readouts.headers['scan_counter'][np.argmax(bad)]}"
        self._problems.add(kind, f"{name} {text}; it is left out", damage=True, count=count)
        return readouts[~bad]

    def _begin(self, readouts: Readouts) -> None:
        """The first image readout fixes the coil count and ends the collection of noise."""
        self._coils = readouts.data.shape[1]
        center = int(readouts.headers["center_sample"][0]) or readouts.data.shape[2] // 2
        dwell = float(readouts.headers["sample_time_us"][0])
        made = self._noise.whitening(self._coils, dwell, (readouts.data[0], center))
        if made is not None:
            self._whitening, self.colouring = made.matrix, made.colouring

    def _on_grid(self, readouts: Readouts, grid: ReadoutGrid) -> Readouts:
        count, _, samples = readouts.data.shape
        data = np.ascontiguousarray(readouts.data)
        headers = readouts.headers
        center = headers["center_sample"].astype(np.int64)
        # 0 and beyond the end mean that the sender did not keep the centre in step with the samples
        center = np.where((center == 0) | (center >= samples), samples // 2, center)
        reverse = readouts.flagged(AcquisitionFlag.REVERSE)
        if reverse.any():
            data = np.where(reverse[:, None, None], data[:, :, ::-1], data)
            center = np.where(reverse, samples - 1 - center, center)
        if self._whitening is not None:
            data = np.matmul(self._whitening, data)
        first = np.where(reverse, headers["discard_post"], headers["discard_pre"]).astype(np.int64)
        last = samples - np.where(reverse, headers["discard_pre"], headers["discard_post"]).astype(np.int64)
        out = np.zeros((count, data.shape[1], grid.encoded), np.complex64)
        imaging = ~is_reference(headers["flags"])
        space = int(headers["encoding_space_ref"][0])
        if imaging.any() and space not in self._covered:
            self._covered[space] = _Coverage(grid)
        places = np.stack([center, first, last], axis=1)
        for place in np.unique(places, axis=0):
            which = (places == place).all(axis=1)
            rows = slice(None) if which.all() else which
            center_at, begin, end = (int(value) for value in place)
            _place(out, data, rows, center_at, begin, end)
            if imaging[which].any():
                self._covered[space].add(begin - center_at, end - center_at, int(np.count_nonzero(imaging[which])))
        if readouts.trajectory is not None and _across(readouts.trajectory):
            text = (
                "readouts carry a trajectory across the lines of the grid, but the header says cartesian: it is not "
                "used; the header of a radial scan has to say radial, goldenangle, spiral or other"
            )
            self._problems.add(Kind.TRAJECTORY, text, damage=False, pixels=True)
        if grid.kept < grid.encoded:
            if are_gapped(data):
                text = (
                    "readouts have gaps, which are not measured as zero: removing the oversampling mixes them with the "
                    "samples around; oversampling=kept leaves it until the image"
                )
                self._problems.add(Kind.OVERSAMPLING, text, damage=False, pixels=True)
            out = _remove_oversampling(out, grid.kept)
        return Readouts(headers.copy(), np.fft.fftshift(out, axes=2))

    def _off_grid(self, readouts: Readouts) -> list[Readouts]:
        """Whiten readouts that follow no grid, cut what is to be discarded, and place their samples."""
        samples = readouts.data.shape[2]
        headers = readouts.headers
        first, last = int(headers["discard_pre"][0]), samples - int(headers["discard_post"][0])
        other = (headers["discard_pre"] != first) | (headers["discard_post"] != samples - last)
        kept = self._off_grid_samples.setdefault(int(headers["encoding_space_ref"][0]), last - first)
        other |= last - first != kept
        text = f"has {last - first} samples that count, expected {kept} as the first image readout had"
        readouts = self._without(readouts, np.atleast_1d(other), Kind.SAMPLES, text)
        if not len(readouts):
            return []
        readouts = self._with_path(readouts)
        if not len(readouts):
            return []
        try:
            paths = self._places(readouts)
        except DataError as error:
            return self._left_out(readouts, str(error))
        outside = leave_kspace(paths[..., :2])
        readouts, paths = self._without(readouts, outside, Kind.TRAJECTORY, "goes beyond k-space"), paths[~outside]
        data = np.ascontiguousarray(readouts.data)
        if self._whitening is not None:
            data = np.matmul(self._whitening, data)
        return [Readouts(readouts.headers.copy(), data[:, :, first:last], paths[:, first:last])] if len(data) else []

    def _with_path(self, readouts: Readouts) -> Readouts:
        """Leave out readouts of which the trajectory leads nowhere."""
        if readouts.trajectory is None:
            return readouts
        finite = np.isfinite(readouts.trajectory).all(axis=(1, 2))
        readouts = self._without(readouts, np.asarray(~finite), Kind.TRAJECTORY, "has a trajectory that is not finite")
        path = np.zeros((0, 1, 2)) if readouts.trajectory is None else readouts.trajectory[..., :2]
        still = np.asarray(np.ptp(path, axis=1).max(axis=-1) == 0)
        return self._without(readouts, still, Kind.TRAJECTORY, "has all samples at the same place of k-space")

    def _left_out(self, readouts: Readouts, why: str) -> list[Readouts]:
        self._without(readouts, np.ones(len(readouts), np.bool_), Kind.TRAJECTORY, f"cannot be placed: {why}")
        return []


class _Coverage:
    """Counts by how many image readouts each column was measured.

    Parameters
    ----------
    grid
        Of the readouts.
    """

    def __init__(self, grid: ReadoutGrid) -> None:
        self._grid = grid
        self._counts = np.zeros(grid.encoded, np.intp)
        self._readouts = 0

    def add(self, first: int, end: int, count: int) -> None:
        """Count readouts with the samples from `first` up to, not including, `end`, seen from the k-space centre."""
        middle = self._grid.encoded // 2
        self._counts[max(0, middle + first) : max(0, middle + end)] += count
        self._readouts += count

    def columns(self) -> NDArray[np.bool_]:
        """``(kept,)`` bool, True where more than half of the readouts hold a sample."""
        encoded, kept = self._grid.encoded, self._grid.kept
        measured = 2 * self._counts > self._readouts
        # Without oversampling the columns lie further apart, around the same centre.
        source = encoded // 2 + np.rint((np.arange(kept) - kept // 2) * (encoded / kept)).astype(np.intp)
        return np.asarray(measured[source.clip(0, encoded - 1)])


def _across(trajectory: NDArray[np.float32]) -> bool:
    """Whether readouts with positions ``(readout, sample, dimension)`` run across the lines along x."""
    if trajectory.shape[2] < 2 or not trajectory.size or not np.isfinite(trajectory).all():
        return False
    along, across = np.ptp(trajectory[..., :2], axis=1).T
    return bool((across > _ACROSS * along).any())


def _finite(readouts: Readouts) -> NDArray[np.bool_]:
    """Which readouts hold values that can be computed with: zeros, or numbers far from both ends of float32."""
    largest = np.abs(readouts.data).max(axis=(1, 2), initial=0.0)
    return np.asarray((largest == 0) | ((largest >= _SMALLEST_VALUE) & (largest <= _LARGEST_VALUE)))


def _place(
    out: NDArray[np.complex64],
    data: NDArray[np.complex64],
    rows: slice | NDArray[np.bool_],
    center: int,
    first: int,
    last: int,
) -> None:
    """Put samples ``first:last`` into `out`, their sample `center` at column 0: the order that an FFT wants."""
    columns = out.shape[2]
    begin = max(first, center - columns // 2)
    end = min(last, center + (columns + 1) // 2)
    if begin < center:
        negative = min(center, end)
        out[rows, :, columns + begin - center : columns + negative - center] = data[rows, :, begin:negative]
    if end > center:
        positive = max(center, begin)
        out[rows, :, positive - center : end - center] = data[rows, :, positive:end]


def _remove_oversampling(kspace: NDArray[np.complex64], kept: int) -> NDArray[np.complex64]:
    """Keep the middle `kept` columns of the image; k-space in and out with its centre at index 0."""
    image = np.fft.ifft(kspace, axis=2, norm="ortho")
    middle = np.concatenate([image[:, :, : (kept + 1) // 2], image[:, :, image.shape[2] - kept // 2 :]], axis=2)
    return np.fft.fft(middle, axis=2, norm="ortho").astype(np.complex64, copy=False)
