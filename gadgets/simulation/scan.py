"""A simulated cine scan as a scanner would send it: ISMRMRD header, readouts in acquisition order, noise scan, ECG.

The k-space is sampled from the phantom drawn at twice the resolution of the scan, so that a reconstruction never meets
the grid on which the object was made. Nothing is kept longer than the scan needs it: blocks come one beat or one frame
at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from gadgets.files.raw import write_scan
from gadgets.simulation.header import MEASUREMENT_UID, NOISE_BANDWIDTH, NOISE_UID, header_xml
from gadgets.simulation.timeline import NOISE_INTERVAL, gated_timeline, motion, timeline
from gadgets.wire.messages import ACQUISITION_HEADER, WAVEFORM_HEADER, AcquisitionFlag, Readouts, Waveform
from gadgets.wire.vendor import DAY, find_vendor, tick_length
from recon_core.errors import SettingsError
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.simulate.coils import coil_maps, coil_maps_at, noise_covariance
from recon_core.simulate.ecg import cardiac_position, ecg_signal
from recon_core.simulate.phantom import BeatingThorax, field_inhomogeneity, pixel_positions
from recon_core.simulate.radial import delayed, measure, measure_off_resonance, spoke_angles
from recon_core.simulate.sampling import acs_rows, grid_rows, partial_fourier_mask, pseudo_radial_mask, sampling_mask
from recon_core.storage import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.simulation.plan import ScanPlan

_UNGATED_SINCE = 10761.2375  # s since a trigger that never was, at the first image readout
_BODY_HALF_WIDTH = 190.0  # mm, nothing of the phantom lies further out along x
_SUPERSAMPLING = 2
_NOISE_DWELL = 5.0  # us
_NOISE_SAMPLES = 256
_ECG_SAMPLE = 0.0025  # s
_ECG_PACKET = 320  # samples
_ECG_LEADS = (1.0, 0.7, -0.5, 0.35)


@dataclass(frozen=True)
class Truth:
    """What a reconstruction should find."""

    image: NDArray[np.complex64]
    """``(slice, frame, y, x)`` complex64 on the matrix and field of view of the image: the noise-free, fully sampled
    coil images of the scan's resolution, combined with the coil maps of unit norm, ``sum(conj(m) c) / |m|``, and
    interpolated where the header asks for more pixels. A reconstruction with maps of unit norm shows its magnitude,
    up to one factor for the series."""
    coil_maps: NDArray[np.complex64]
    """``(slice, coil, y, x)`` complex64 on the measured matrix, not of unit norm."""
    mask: NDArray[np.bool_]
    """``(slice, frame, ky)`` bool over the encoded lines, autocalibration lines included."""
    noise_covariance: NDArray[np.complex64]
    """``(coil, coil)`` complex64: mean of ``n n^H`` over the noise of image samples, half of it in the real part."""
    position: NDArray[np.float64]
    read_dir: NDArray[np.float64]
    phase_dir: NDArray[np.float64]
    slice_dir: NDArray[np.float64]
    """`position`, `read_dir`, `phase_dir`, `slice_dir`: ``(slice, 3)`` mm and unit vectors in patient coordinates;
    pixel ``n // 2`` lies at `position`."""
    field_of_view: NDArray[np.float64]
    """``(3,)`` mm along x, y and the slice."""
    cardiac_phase: NDArray[np.float64]
    """``(slice, frame)`` fraction of the RR interval each frame shows; retrospectively gated, of a beat of the median
    length of those that were measured."""

    def save(self, path: Path) -> None:
        """Write all arrays to an npz file under the names they have here.

        Raises
        ------
        ResourceError
            If the file cannot be written.
        """
        with replacing(path, make_folder=False) as part, part.open("wb") as file:
            np.savez(file, **{item.name: getattr(self, item.name) for item in fields(self)})


class Scan:
    """A planned scan: its header, its readouts, the truth behind them.

    Parameters
    ----------
    plan
        What to simulate.
    """

    def __init__(self, plan: ScanPlan) -> None:
        self.plan = plan
        retrospective = plan.gating == "retrospective"
        frames = plan.frames
        self._mask = _spoke_mask(plan) if plan.is_radial else _line_mask(plan)
        self._points: NDArray[np.bool_] | None = None
        if plan.grid_spokes:
            self._points = pseudo_radial_mask(frames, plan.encoded_y, plan.encoded_x, plan.grid_spokes)
        if not self._mask.any(axis=2).all():
            raise SettingsError("some frames would have no line at all; lower the acceleration or add ACS lines")
        if retrospective:
            self._order, self._r_waves, self._triggers, self._states = gated_timeline(plan, self._mask)
            self._mask = np.repeat(self._mask, frames, axis=1)
        else:
            self._order, self._r_waves = timeline(plan, self._mask)
            self._triggers = self._r_waves
        self._cardiac_phase, self._respiration = motion(plan, self._order, self._r_waves)
        late = self._order["frame"] >= frames - self._order["slice"] % (plan.uneven_frames + 1)
        if not retrospective and late.any():
            self._order = self._order[~late]
        if plan.lost_readouts >= len(self._order):
            raise SettingsError(f"the scan has {len(self._order)} image readouts; lost_readouts must leave some")
        if not retrospective:
            numbers = np.repeat(np.arange(plan.slices), frames)
            self._states = np.stack([numbers, self._cardiac_phase.ravel(), self._respiration.ravel()], axis=1)
        self._covariance = noise_covariance(plan.coils, seed=plan.seed)
        self._root = np.linalg.cholesky(self._covariance.astype(np.complex128)).astype(np.complex64)
        self._slices: dict[int, _SliceSource] = {}
        self._image = np.zeros((plan.slices, frames, *plan.image_matrix), np.complex64)
        self._drawn = np.zeros((plan.slices, frames), np.bool_)
        frame_lines = int(self._mask[0, 0].sum())
        self.header = header_xml(plan, 1 + int(self._order["segment"].max()), len(_ECG_LEADS), frame_lines)

    def items(self) -> Iterator[Readouts | Waveform]:
        """Make the messages of the scan in the order of acquisition; every call makes the same ones."""
        plan, order = self.plan, self._order
        sent = 0
        packets = self._ecg_packets()
        packet = next(packets, None)
        if self._noise_in_front:
            noise = self._noise_scan()
            sent += len(noise)
            yield noise
        edges = np.flatnonzero(np.diff(order["block"])) + 1
        bounds = list(zip([0, *edges], [*edges, len(order)], strict=True))
        keys = order["state"]
        last_block = np.zeros(len(self._states), np.int64)
        np.maximum.at(last_block, keys, order["block"])
        kspace: dict[int, NDArray[np.complex64]] = {}
        headers = self._headers()
        for first, last in bounds:
            # The ECG up to here; all of it before the last block, so that the scan ends with its last readout.
            until = order["time"][first] if last < len(order) else np.inf
            while packet is not None and packet[0] <= until:
                packet[1].header["scan_counter"] = sent
                yield packet[1]
                packet = next(packets, None)
            here = keys[first:last]
            for key in np.unique(here):
                if key not in kspace:
                    measured = self._sent(self._measured(int(key)))
                    kspace[int(key)] = measured.swapaxes(0, 1)
            data = np.empty((last - first, plan.coils, plan.samples), np.complex64)
            for key in np.unique(here):
                which = np.flatnonzero(here == key)
                data[which] = kspace[int(key)][order["line"][first:last][which]]
                if last_block[key] == order["block"][first]:
                    del kspace[int(key)]
            if plan.reversed_readouts:
                reverse = (headers["flags"][first:last] & AcquisitionFlag.REVERSE.bit) != 0
                data[reverse] = data[reverse, :, ::-1]
            if plan.snr:
                data += self._noise(1 + int(order["block"][first]), len(data), data.shape[2], plan.noise_deviation)
            if self._points is not None:
                here = order[first:last]
                data *= self._points[here["frame"], here["row"], None, plan.dropped_samples :]
            sent += len(data)
            arrived = slice(max(0, plan.lost_readouts - first), None)
            if first + arrived.start < last:
                path = self._written(order[first:last][arrived])
                yield Readouts(headers[first:last][arrived], data[arrived], path)

    @property
    def noise(self) -> tuple[str, Readouts] | None:
        """Header and readouts of the noise where it is a separate measurement; else None."""
        if not self.plan.has_noise_file:
            return None
        readouts = self._noise_scan()
        readouts.headers["measurement_uid"] = NOISE_UID
        return header_xml(self.plan, 1, len(_ECG_LEADS), 1, noise=True), readouts

    @property
    def _noise_in_front(self) -> int:
        """How many noise readouts are sent ahead of the images."""
        plan = self.plan
        return plan.noise_readouts if plan.snr and not plan.has_noise_file else 0

    @property
    def truth(self) -> Truth:
        """The truth; frames that no readout was made of yet are drawn first."""
        plan = self.plan
        for number, frame in zip(*np.nonzero(~self._drawn), strict=True):
            self._kspace(int(number), int(frame))
        read, phase, normal = (np.tile(direction, (plan.slices, 1)) for direction in plan.directions)
        return Truth(
            image=self._image,
            coil_maps=np.stack([self._source(number).maps for number in range(plan.slices)]),
            mask=self._mask,
            noise_covariance=np.asarray(2.0 * plan.noise_deviation**2 * self._covariance, dtype=np.complex64),
            position=plan.positions,
            read_dir=read,
            phase_dir=phase,
            slice_dir=normal,
            field_of_view=np.array([plan.field_of_view_x, plan.field_of_view_y, plan.slice_thickness]),
            cardiac_phase=self._cardiac_phase,
        )

    def _sent(self, kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """The samples ``(coil, line, sample)`` that are sent of whole lines."""
        if self.plan.removes_oversampling:
            return _fft(_crop(_ifft(kspace, 2), 2, self.plan.matrix_x), 2)
        return kspace[..., self.plan.dropped_samples :]

    def _source(self, number: int) -> _SliceSource:
        if number not in self._slices:
            self._slices[number] = _SliceSource(self.plan, number)
        return self._slices[number]

    def _measured(self, state: int) -> NDArray[np.complex64]:
        """Noise-free measured lines ``(coil, line, kx)`` of a state of the object."""
        if self.plan.gating == "retrospective":
            number, phase, breath = self._states[state].tolist()
            return self._source(int(number)).frame(phase, breath)[0][:, self._mask[int(number), 0]]
        number, frame = divmod(state, self.plan.frames)
        samples = self._kspace(number, frame)
        return samples if self.plan.is_radial else samples[:, self._mask[number, frame]]

    def _kspace(self, number: int, frame: int) -> NDArray[np.complex64]:
        """Noise-free k-space ``(coil, ky, kx)``, or spokes, of a frame; keeps the image it belongs to."""
        path = self._path(frame, delays=True) if self.plan.is_radial else None
        kspace, image = self._source(number).frame(
            float(self._cardiac_phase[number, frame]), float(self._respiration[number, frame]), path
        )
        for axis, size in enumerate(self.plan.image_matrix):
            image = _padded(image, axis, size)
        self._image[number, frame] = image
        self._drawn[number, frame] = True
        return kspace

    def _path(self, frame: int, *, delays: bool = False) -> NDArray[np.float32]:
        """Positions ``(spoke, sample, 2)`` of a frame in cycles per pixel: as planned, or as delays leave them."""
        plan = self.plan
        angles = spoke_angles(plan.trajectory, plan.frames, plan.spokes)[frame]
        matrix = plan.matrix_y, plan.matrix_x
        positions = spoke_positions(angles, plan.samples, plan.center_sample, matrix, plan.encoded_x / plan.matrix_x)
        if not delays:
            return positions
        return delayed(positions, angles, (plan.delay_x, plan.delay_y, plan.delay_xy), 1 / plan.encoded_x)

    def _written(self, order: NDArray[np.void]) -> NDArray[np.float32] | None:
        """The trajectory ``(readout, sample, dimension)`` as the readouts carry it; None where they do not."""
        plan = self.plan
        if not plan.is_radial or plan.writes_trajectory == "none":
            return None
        frames = np.unique(order["frame"])
        paths = np.stack([self._path(int(frame)) for frame in frames])
        path = paths[np.searchsorted(frames, order["frame"]), order["row"]]
        if plan.writes_trajectory == "fov":
            return np.asarray(path * np.array([plan.matrix_x, plan.matrix_y], np.float32))
        if plan.writes_trajectory == "weighted":
            path = np.concatenate([path, np.linalg.norm(path, axis=-1, keepdims=True)], axis=-1)
        return np.asarray(path, np.float32)

    def _noise(self, stream: int, readouts: int, samples: int, deviation: float) -> NDArray[np.complex64]:
        """Coloured noise ``(readout, coil, sample)``; `stream` picks an independent realisation."""
        rng = np.random.default_rng([self.plan.seed, 51, stream])
        white = rng.standard_normal((readouts, self.plan.coils, 2 * samples), np.float32).view(np.complex64)
        return np.asarray((np.float32(deviation) * self._root) @ white)

    def _headers(self) -> NDArray[np.void]:
        """Headers of all image readouts in the order of acquisition."""
        plan, order = self.plan, self._order
        headers = np.zeros(len(order), ACQUISITION_HEADER)
        self._common(headers, self._noise_in_front, order["time"])
        headers["number_of_samples"] = plan.samples
        headers["center_sample"] = plan.center_sample
        headers["sample_time_us"] = plan.sample_time
        headers["position"] = plan.positions[order["slice"]]
        counters = headers["idx"]
        counters["kspace_encode_step_1"] = order["row"] - plan.dropped_lines
        for name in ("slice", "average", "segment"):
            counters[name] = order[name]
        if not plan.continuous:
            counters[plan.frame_counter] = order["frame"]
        if find_vendor(plan.vendor).center_in_readouts:
            counters["user"][:, 5] = plan.encoded_y // 2 - plan.dropped_lines

        flags = headers["flags"]
        if plan.reversed_readouts:
            reverse = order["row"] % 2 == 1
            flags[reverse] |= AcquisitionFlag.REVERSE.bit
            headers["center_sample"][reverse] = plan.samples - 1 - plan.center_sample
        uncounted = plan.gating == "retrospective" or plan.continuous
        keys = order["slice"] * plan.frames + (0 if uncounted else order["frame"])
        _, first = np.unique(keys, return_index=True)
        _, last = np.unique(keys[::-1], return_index=True)
        flags[first] |= AcquisitionFlag.FIRST_IN_SLICE.bit
        flags[len(order) - 1 - last] |= AcquisitionFlag.LAST_IN_SLICE.bit
        flags[-1] |= AcquisitionFlag.LAST_IN_MEASUREMENT.bit
        if plan.sampling != "full" and not plan.is_radial:
            calibration = acs_rows(plan.encoded_y, plan.acs_lines)[order["row"]]
            imaging = np.ones(len(order), np.bool_)
            if plan.sampling in {"uniform", "interleaved"}:
                shift = int(plan.sampling == "interleaved")
                grid = grid_rows(plan.frames, plan.encoded_y, plan.acceleration, shift)
                imaging = grid[order["frame"] * shift, order["row"]]
            flags[calibration & imaging] |= AcquisitionFlag.CALIBRATION_AND_IMAGING.bit
            flags[calibration & ~imaging] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
        return headers

    def _common(self, headers: NDArray[np.void], counted: int, times: NDArray[np.float64]) -> None:
        plan = self.plan
        headers["version"] = 1
        headers["measurement_uid"] = MEASUREMENT_UID
        headers["scan_counter"] = counted + 1 + np.arange(len(headers))
        if plan.stamps != "none":
            headers["acquisition_time_stamp"] = self._clock(plan.start_time + times)
        if plan.stamps == "all":
            since = _UNGATED_SINCE + times if plan.ungated else cardiac_position(times, self._triggers)[0]
            headers["physiology_time_stamp"][:, 0] = self._clock(since)
        headers["available_channels"] = headers["active_channels"] = plan.coils
        for name, direction in zip(("read_dir", "phase_dir", "slice_dir"), plan.directions, strict=True):
            headers[name] = direction

    def _clock(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Ticks of the vendor's clock, which restarts every day."""
        tick = tick_length(self.plan.vendor)
        return np.floor(1000 * seconds / tick + 1e-6).astype(np.int64) % round(DAY / tick)

    def _noise_scan(self) -> Readouts:
        """The noise scan: its own length and dwell time, hence its own bandwidth and noise power.

        Power goes with the bandwidth, 1 / dwell; on top of that the receiver passes only the share
        ``relativeReceiverNoiseBandwidth`` of the noise at the full bandwidth of a noise readout.
        """
        plan = self.plan
        headers = np.zeros(plan.noise_readouts, ACQUISITION_HEADER)
        times = np.arange(-plan.noise_readouts, 0, dtype=np.float64) * NOISE_INTERVAL - 0.5
        self._common(headers, 0, times)
        headers["number_of_samples"] = _NOISE_SAMPLES
        headers["sample_time_us"] = _NOISE_DWELL
        headers["position"] = plan.positions[0]
        headers["flags"] = AcquisitionFlag.NOISE.bit
        power = plan.sample_time / _NOISE_DWELL * NOISE_BANDWIDTH
        deviation = plan.noise_deviation * math.sqrt(power)
        return Readouts(headers, self._noise(0, plan.noise_readouts, _NOISE_SAMPLES, deviation))

    def _ecg_packets(self) -> Iterator[tuple[float, Waveform]]:
        """Packets of the ECG (waveform id 0) with the time at which each is complete; last channel is the trigger."""
        if not self.plan.waveforms:
            return
        rng = np.random.default_rng([self.plan.seed, 52])
        begin, end = -1.0, float(self._order["time"][-1])
        for number in range(max(1, math.ceil((end - begin) / (_ECG_PACKET * _ECG_SAMPLE)))):
            start = begin + number * _ECG_PACKET * _ECG_SAMPLE
            times = start + np.arange(_ECG_PACKET, dtype=np.float64) * _ECG_SAMPLE
            signal = ecg_signal(times, self._r_waves)
            data = np.zeros((len(_ECG_LEADS) + 1, _ECG_PACKET), np.uint32)
            for channel, gain in enumerate(_ECG_LEADS):
                volts = gain * signal + 0.02 * rng.standard_normal(_ECG_PACKET)
                data[channel] = np.clip(np.rint(2048 + 1000 * volts), 0, 4095)
            beats = np.ceil((self._triggers - start) / _ECG_SAMPLE).astype(np.int64)
            data[-1, beats[(beats >= 0) & (beats < _ECG_PACKET)]] = 4095
            header = np.zeros((), WAVEFORM_HEADER)
            header["version"] = 1
            header["measurement_uid"] = MEASUREMENT_UID
            header["time_stamp"] = self._clock(np.array(self.plan.start_time + start))
            header["number_of_samples"], header["channels"] = _ECG_PACKET, len(data)
            header["sample_time_us"] = _ECG_SAMPLE * 1e6
            yield float(times[-1]), Waveform(header, data)


def _line_mask(plan: ScanPlan) -> NDArray[np.bool_]:
    """Lines of a Cartesian scan: ``(slice, frame, ky)``, one frame where retrospective gating makes them."""
    lines = plan.wanted_lines
    mask = np.stack(
        [
            sampling_mask(
                plan.sampling,
                1 if plan.gating == "retrospective" else plan.frames,
                lines,
                acceleration=plan.acceleration,
                acs_lines=plan.acs_lines,
                seed=plan.seed + 1000 * number,
            )
            for number in range(plan.slices)
        ]
    )
    mask = partial_fourier_mask(mask, plan.partial_fourier)
    outer = plan.encoded_y // 2 - lines // 2
    return np.pad(mask, [(0, 0), (0, 0), (outer, plan.encoded_y - outer - lines)])


def _spoke_mask(plan: ScanPlan) -> NDArray[np.bool_]:
    """Spokes of a radial scan: ``(slice, frame, spoke)``."""
    return np.ones((plan.slices, plan.frames, plan.spokes), np.bool_)


class _SliceSource:
    """Draws the frames of one slice and measures their whole k-space."""

    def __init__(self, plan: ScanPlan, number: int) -> None:
        self._plan = plan
        fine_y, fine_x = _SUPERSAMPLING * plan.encoded_y, _SUPERSAMPLING * plan.encoded_x
        fov_y, fov_x = plan.encoded_fov
        y, x = pixel_positions(fine_y, fov_y), pixel_positions(fine_x, fov_x)
        inside = np.flatnonzero(np.abs(x) <= _BODY_HALF_WIDTH)
        self._columns = slice(int(inside[0]), int(inside[-1]) + 1)
        offset = float(plan.slice_offsets[number])
        x = x[self._columns]
        self._thorax = BeatingThorax(
            y, x, slice_offset_mm=offset, ejection_fraction=plan.ejection_fraction, seed=plan.seed
        )
        self._field = plan.off_resonance * field_inhomogeneity(y, x)
        self._fine_maps = coil_maps_at(plan.coils, y, x, slice_offset_mm=offset, seed=plan.seed)
        matrix, fov = (plan.matrix_y, plan.matrix_x), (plan.field_of_view_y, plan.field_of_view_x)
        self.maps = coil_maps(plan.coils, matrix, fov, slice_offset_mm=offset, seed=plan.seed)
        self._weights = self.maps.conj() / np.sqrt((np.abs(self.maps) ** 2).sum(0, keepdims=True))

    def frame(
        self, time: float, respiration: float, path: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
        """Return k-space ``(coil, ky, kx)`` of the encoded matrix and the combined image ``(y, x)``.

        With a path ``(spoke, sample, 2)`` the first are its samples, and the image is that of the disk of k-space.
        """
        plan = self._plan
        fine = self._fine_maps * self._thorax.frame(time, respiration)
        # One axis at a time, dropping the high frequencies of the first before the second is transformed.
        half = _crop(_fft(fine, 1), 1, plan.encoded_y)
        wide = np.zeros((*half.shape[:2], _SUPERSAMPLING * plan.encoded_x), np.complex64)
        wide[:, :, self._columns] = half
        kspace = _crop(_fft(wide, 2), 2, plan.encoded_x) / np.float32(_SUPERSAMPLING)
        images = _crop(_ifft(kspace, 2), 2, plan.matrix_x)
        images = _crop(_ifft(images, 1), 1, plan.matrix_y)
        if path is None:
            return kspace, (self._weights * images).sum(0)
        spokes = self._spokes(fine, path)
        rows, columns = (np.fft.fftshift(np.fft.fftfreq(size)) for size in images.shape[1:])
        disk = np.hypot(rows[:, None], columns) <= 0.5
        images = _ifft(_ifft(_fft(_fft(images, 1), 2) * disk, 1), 2)
        return spokes, (self._weights * images).sum(0)

    def _spokes(self, fine: NDArray[np.complex64], path: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Samples ``(coil, spoke, sample)`` of the coil images at the positions of a path."""
        plan = self._plan
        margins = self._columns.start, _SUPERSAMPLING * plan.encoded_x - self._columns.stop
        wide = np.pad(fine, [(0, 0), (0, 0), margins])
        if not plan.off_resonance:
            return measure(wide, path)
        return measure_off_resonance(wide, path, np.pad(self._field, [(0, 0), margins]), plan.readout_times)


def simulate(plan: ScanPlan) -> Scan:
    """Simulate a scan.

    Parameters
    ----------
    plan
        What to simulate.

    Returns
    -------
    Scan
        ``header`` is the ISMRMRD XML, ``items()`` makes the messages, ``truth`` has the true images.
    """
    return Scan(plan)


def write_simulation(plan: ScanPlan, path: Path) -> Path:
    """Write a simulated scan as ISMRMRD HDF5, its truth next to it, and its noise if that is a separate measurement.

    Parameters
    ----------
    plan
        What to simulate.
    path
        The file to write; an existing one is replaced.

    Returns
    -------
    Path
        ``<stem>_truth.npz`` in the same folder, holding the arrays of `Truth`.

    Raises
    ------
    ResourceError
        If a file cannot be written.
    """
    scan = simulate(plan)
    write_scan(path, scan.header, scan.items())
    noise = scan.noise
    if noise is not None:
        write_scan(noise_path(path), noise[0], [noise[1]])
    truth = path.with_name(f"{path.stem}_truth.npz")
    scan.truth.save(truth)
    return truth


def noise_path(path: Path) -> Path:
    """Path of the noise that `write_simulation` writes where it is a separate measurement."""
    return path.with_name(f"{path.stem}_noise{path.suffix}")


def _fft(array: NDArray[np.complex64], axis: int) -> NDArray[np.complex64]:
    shifted = np.fft.fft(np.fft.ifftshift(array, axis), axis=axis, norm="ortho")
    return np.asarray(np.fft.fftshift(shifted, axis), dtype=np.complex64)


def _ifft(array: NDArray[np.complex64], axis: int) -> NDArray[np.complex64]:
    shifted = np.fft.ifft(np.fft.ifftshift(array, axis), axis=axis, norm="ortho")
    return np.asarray(np.fft.fftshift(shifted, axis), dtype=np.complex64)


def _crop(array: NDArray[np.complex64], axis: int, size: int) -> NDArray[np.complex64]:
    """Keep `size` entries around the centre ``n // 2``."""
    first = array.shape[axis] // 2 - size // 2
    return array[(slice(None),) * axis + (slice(first, first + size),)]


def _padded(image: NDArray[np.complex64], axis: int, size: int) -> NDArray[np.complex64]:
    """Interpolate an axis to `size` pixels by zeros around its k-space; the centre ``n // 2`` and the values stay."""
    before = image.shape[axis]
    if size == before:
        return image
    widths = [(0, 0)] * image.ndim
    widths[axis] = (size // 2 - before // 2, (size - size // 2) - (before - before // 2))
    return _ifft(np.pad(_fft(image, axis), widths), axis) * np.float32(math.sqrt(size / before))
