"""A simulated cine scan as a scanner would send it: ISMRMRD header, readouts in acquisition order, noise scan, ECG.

The k-space is sampled from the phantom drawn at twice the resolution of the scan, so that a reconstruction never meets
the grid on which the object was made. Nothing is kept longer than the scan needs it: blocks come one beat or one frame
at a time.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from gadgets.files import write_scan
from gadgets.protocol import ACQUISITION_HEADER, WAVEFORM_HEADER, AcquisitionFlag, Readouts, Waveform
from recon_core.errors import ResourceError, SettingsError
from recon_core.gating import cycle_position
from recon_core.options import option
from recon_core.simulate.coils import coil_maps, coil_maps_at, noise_covariance
from recon_core.simulate.ecg import cardiac_position, ecg_signal, rr_intervals, seen_triggers
from recon_core.simulate.phantom import BLOOD_SIGNAL, BeatingThorax, pixel_positions
from recon_core.simulate.sampling import SAMPLINGS, acs_rows, grid_rows, partial_fourier_mask, sampling_mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_TICK = 0.0025  # s, clock of the time stamps
_TICKS_PER_DAY = 34_560_000
_BODY_HALF_WIDTH = 190.0  # mm, nothing of the phantom lies further out along x
_SUPERSAMPLING = 2
_READOUT_TIME = 1100.0  # us
_NOISE_DWELL = 5.0  # us
_NOISE_SAMPLES = 256
_NOISE_INTERVAL = 0.005  # s between two noise readouts
_NOISE_BANDWIDTH = 0.793  # what the header says as relativeReceiverNoiseBandwidth
_MEASUREMENT_UID = 57
_ECG_SAMPLE = 0.0025  # s
_ECG_PACKET = 320  # samples
_ECG_LEADS = (1.0, 0.7, -0.5, 0.35)
_ARRHYTHMIA = 0.25  # share of the mean RR by which a beat deviates that the sequence measures again
_MOST_REMEASURED = 16  # beats
_CYCLE_STEPS = 160  # moments of the cycle that a retrospectively gated scan is drawn at


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What to simulate; every field has a default that works."""

    matrix_x: int = option(192, "pixels along the readout of the reconstructed image", minimum=8, maximum=2048)
    matrix_y: int = option(156, "pixels along the phase encoding of the reconstructed image", minimum=8, maximum=2048)
    field_of_view_x: float = option(360.0, "field of view along the readout in mm", minimum=50.0, maximum=1000.0)
    field_of_view_y: float = option(292.5, "field of view along the phase encoding in mm", minimum=50.0, maximum=1000.0)
    frames: int = option(24, "frames per slice", minimum=1, maximum=10000)
    slices: int = option(1, "short-axis slices, apex first", minimum=1, maximum=64)
    slice_thickness: float = option(8.0, "slice thickness in mm", minimum=0.5, maximum=50.0)
    slice_gap: float = option(2.0, "gap between slices in mm", minimum=0.0, maximum=50.0)
    slice_order: str = option(
        "sequential",
        "one slice after the other, or interleaved: one readout of each slice in turn",
        choices=("sequential", "interleaved"),
    )
    coils: int = option(10, "receive coils", minimum=1, maximum=256)
    sampling: str = option(
        "uniform",
        "lines per frame: all, every R-th, every R-th moving from frame to frame, or random",
        choices=SAMPLINGS,
    )
    acceleration: int = option(3, "acceleration R; not used by full sampling", minimum=1, maximum=32)
    acs_lines: int = option(
        24, "autocalibration lines in every frame; not used by full sampling", minimum=0, maximum=512
    )
    partial_fourier: float = option(
        1.0, "share of the lines that is measured, the first ones missing", minimum=0.55, maximum=1.0
    )
    phase_oversampling: float = option(
        0.0, "how much the encoded field of view along y exceeds the image", minimum=0.0, maximum=2.0
    )
    oversampling: float = option(2.0, "readout oversampling", minimum=1.0, maximum=4.0)
    asymmetric_echo: float = option(
        0.0, "share of the samples missing at the front of each readout", minimum=0.0, maximum=0.4
    )
    reversed_readouts: bool = option(
        False, "measure every second line from its other end, as bipolar readouts do, and flag it as reversed"
    )
    interpolation: float = option(
        1.0,
        "how much larger than measured the header wants the matrix of the image, as a scanner with interpolation does",
        minimum=1.0,
        maximum=4.0,
    )
    averages: int = option(1, "how often every line is measured", minimum=1, maximum=64)
    segments: int = option(
        0,
        "lines per beat and frame of a segmented scan, which measures a part of every frame in every beat; 0 measures "
        "one frame after the other, each at its place in the next beat",
        minimum=0,
        maximum=512,
    )
    gating: str = option(
        "prospective",
        "prospective, or retrospective: a segment is repeated from beat to beat with a phase counter that runs on, and "
        "the next one begins after the next trigger (averages: as many triggers later); without segments all lines are "
        "repeated over as many beats as there are averages, freely running",
        choices=("prospective", "retrospective"),
    )
    rr_stretch: str = option(
        "diastole",
        "retrospective gating: what a longer beat stretches, diastole only or the whole cycle",
        choices=("diastole", "cycle"),
    )
    time_axis: str = option(
        "phase",
        "counter of the frames: phase of one beat, or repetition of a real-time scan that runs through the beats",
        choices=("phase", "repetition"),
    )
    repetition_time: float = option(2.8, "time from one readout to the next in ms", minimum=1.0, maximum=100.0)
    snr: float = option(
        40.0,
        "signal of blood at the centre of a fully sampled frame over the standard deviation of the noise (real or "
        "imaginary part, mean over coils); 0 simulates no noise",
        minimum=0.0,
        maximum=1e6,
    )
    noise_readouts: int = option(
        32, "readouts of the noise scan before the images; none when snr is 0", minimum=0, maximum=4096
    )
    heart_rate: float = option(66.0, "beats per minute", minimum=20.0, maximum=240.0)
    rr_variability: float = option(
        0.03, "standard deviation of the RR interval over its mean", minimum=0.0, maximum=0.3
    )
    ectopic_beat: bool = option(False, "make the third beat premature, followed by a pause")
    remeasure: bool = option(
        False, "retrospective gating: measure a segment again after a beat that is off the mean RR by over a quarter"
    )
    missed_trigger: int = option(
        0, "retrospective gating: beat, from 1, whose R wave gives no trigger; 0 for none", minimum=0, maximum=10000
    )
    false_trigger: int = option(
        0, "retrospective gating: beat, from 1, whose T wave gives a trigger too; 0 for none", minimum=0, maximum=10000
    )
    ejection_fraction: float = option(0.6, "stroke volume over end-diastolic volume", minimum=0.0, maximum=0.9)
    respiration: float = option(
        0.0,
        "respiratory shift of heart and abdomen in mm, peak to peak; real-time scans only",
        minimum=0.0,
        maximum=40.0,
    )
    waveforms: bool = option(True, "send the ECG along")
    rotation_x: float = option(
        0.0, "turn of the slice about the left-right axis in degrees", minimum=-180.0, maximum=180.0
    )
    rotation_y: float = option(
        0.0, "turn of the slice about the front-back axis in degrees", minimum=-180.0, maximum=180.0
    )
    offset_left: float = option(
        0.0, "centre of the stack in mm towards the patient's left", minimum=-500.0, maximum=500.0
    )
    offset_back: float = option(
        0.0, "centre of the stack in mm towards the patient's back", minimum=-500.0, maximum=500.0
    )
    offset_head: float = option(
        0.0, "centre of the stack in mm towards the patient's head", minimum=-500.0, maximum=500.0
    )
    start_time: float = option(43200.0, "time of day of the first image readout in s", minimum=0.0, maximum=86399.0)
    vendor: str = option(
        "cinestream simulation", "system vendor in the header; a name with SIEMENS also sets idx.user[5]"
    )
    seed: int = option(0, "same seed, same scan", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what no scan can be.

        Raises
        ------
        SettingsError
            If a value is not allowed or two of them contradict each other.
        """
        for item in fields(self):
            value, limits = getattr(self, item.name), item.metadata
            if limits["choices"] and value not in limits["choices"]:
                raise SettingsError(f"{item.name} must be one of {', '.join(limits['choices'])}; got {value!r}")
            if limits["minimum"] is not None and not value >= limits["minimum"]:
                raise SettingsError(f"{item.name} must be at least {limits['minimum']:g}, got {value!r}")
            if limits["maximum"] is not None and not value <= limits["maximum"]:
                raise SettingsError(f"{item.name} must be at most {limits['maximum']:g}, got {value!r}")
        if self.time_axis == "repetition" and (self.segments or self.averages > 1):
            raise SettingsError("a real-time scan (time_axis repetition) has neither segments nor averages")
        if self.time_axis == "phase" and self.respiration:
            raise SettingsError("respiration needs a real-time scan: set time_axis to repetition")
        if self.gating == "retrospective" and (self.time_axis != "phase" or self.sampling == "interleaved"):
            raise SettingsError(
                "retrospective gating counts phases and measures the same lines in all of them; take time_axis phase "
                "and another sampling than interleaved"
            )
        if self.gating == "retrospective" and self.slice_order == "interleaved":
            raise SettingsError("retrospective gating measures one slice after the other: slice_order sequential")
        if self.gating == "prospective" and (self.missed_trigger or self.false_trigger or self.remeasure):
            raise SettingsError("missed_trigger, false_trigger and remeasure need gating retrospective")
        used = self.segments * self.frames * self.repetition_time / 1000
        used *= self.slices if self.slice_order == "interleaved" else 1
        if used > 60.0 / self.heart_rate and self.gating == "prospective":
            raise SettingsError(
                f"segments x frames x repetition_time is {used:.2f} s per beat (shared by interleaved slices), but "
                f"a beat lasts {60 / self.heart_rate:.2f} s; take fewer segments or frames"
            )
        if self.sampling != "full":
            if self.acceleration > self.encoded_y:
                raise SettingsError(f"acceleration must not exceed the {self.encoded_y} lines, got {self.acceleration}")
            if self.acs_lines > 2 * (self.encoded_y // 2 - self.dropped_lines):
                raise SettingsError(
                    f"{self.acs_lines} ACS lines do not fit into {self.encoded_y} lines with this partial_fourier"
                )

    @property
    def encoded_x(self) -> int:
        """Samples of a whole readout."""
        return round(self.matrix_x * self.oversampling)

    @property
    def encoded_y(self) -> int:
        """Lines of the whole k-space."""
        return round(self.matrix_y * (1.0 + self.phase_oversampling))

    @property
    def encoded_fov(self) -> tuple[float, float]:
        """Encoded field of view (y, x) in mm."""
        return (
            self.field_of_view_y * self.encoded_y / self.matrix_y,
            self.field_of_view_x * self.encoded_x / self.matrix_x,
        )

    @property
    def image_matrix(self) -> tuple[int, int]:
        """Pixels (y, x) of the images that the header asks for."""
        return round(self.matrix_y * self.interpolation), round(self.matrix_x * self.interpolation)

    @property
    def dropped_lines(self) -> int:
        """First lines that partial Fourier leaves out."""
        return self.encoded_y - round(self.encoded_y * self.partial_fourier)

    @property
    def dropped_samples(self) -> int:
        """First samples that an asymmetric echo leaves out."""
        return round(self.encoded_x * self.asymmetric_echo)

    @property
    def sample_time(self) -> float:
        """Dwell time of an image readout in us."""
        return max(round(_READOUT_TIME / self.encoded_x, 1), 0.1)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the real (or imaginary) part of the noise in a sample, mean over coils."""
        return BLOOD_SIGNAL / self.snr if self.snr else 0.0

    @property
    def slice_offsets(self) -> NDArray[np.float64]:
        """Positions of the slices along the slice direction in mm, 0 at the centre of the stack."""
        numbers = np.arange(self.slices, dtype=np.float64)
        return (numbers - (self.slices - 1) / 2) * (self.slice_thickness + self.slice_gap)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Rows read, phase and slice direction in patient coordinates (left, posterior, superior)."""
        a, b = math.radians(self.rotation_x), math.radians(self.rotation_y)
        about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
        about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
        return np.asarray((about_y @ about_x).T)

    @property
    def positions(self) -> NDArray[np.float64]:
        """``(slice, 3)`` centres of the slices in mm, patient coordinates; pixel ``n // 2`` lies there."""
        centre = np.array([self.offset_left, self.offset_back, self.offset_head])
        return np.asarray(centre + self.slice_offsets[:, None] * self.directions[2])


@dataclass(frozen=True)
class Truth:
    """What a reconstruction should find.

    Parameters
    ----------
    image
        ``(slice, frame, y, x)`` complex64 on the matrix and field of view of the image: the noise-free, fully sampled
        coil images of the scan's resolution, combined with the coil maps of unit norm, ``sum(conj(m) c) / |m|``, and
        interpolated where the header asks for more pixels. A
        reconstruction with maps of unit norm shows its magnitude, up to one factor for the series.
    coil_maps
        ``(slice, coil, y, x)`` complex64 on the measured matrix, not of unit norm.
    mask
        ``(slice, frame, ky)`` bool over the encoded lines, autocalibration lines included.
    noise_covariance
        ``(coil, coil)`` complex64: mean of ``n n^H`` over the noise of image samples, half of it in the real part.
    position, read_dir, phase_dir, slice_dir
        ``(slice, 3)`` mm and unit vectors in patient coordinates; pixel ``n // 2`` lies at `position`.
    field_of_view
        ``(3,)`` mm along x, y and the slice.
    cardiac_phase
        ``(slice, frame)`` fraction of the RR interval each frame shows; retrospectively gated, of a beat of the median
        length of those that were measured.
    """

    image: NDArray[np.complex64]
    coil_maps: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    noise_covariance: NDArray[np.complex64]
    position: NDArray[np.float64]
    read_dir: NDArray[np.float64]
    phase_dir: NDArray[np.float64]
    slice_dir: NDArray[np.float64]
    field_of_view: NDArray[np.float64]
    cardiac_phase: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write all arrays to an npz file under the names they have here.

        Raises
        ------
        ResourceError
            If the file cannot be written.
        """
        try:
            np.savez(path, **{item.name: getattr(self, item.name) for item in fields(self)})
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error}; free space or choose another folder") from error


_ORDER = np.dtype(
    [
        ("slice", "<i8"),
        ("frame", "<i8"),
        ("state", "<i8"),  # which of the states of the moving object it measures
        ("row", "<i8"),
        ("average", "<i8"),
        ("segment", "<i8"),
        ("line", "<i8"),  # how many-th measured row of its frame
        ("block", "<i8"),  # readouts of one block are made and sent together
        ("time", "<f8"),  # s after the first image readout could start
    ]
)


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
        frames, lines = plan.frames, plan.encoded_y
        self._mask = np.stack(
            [
                sampling_mask(
                    plan.sampling,
                    1 if retrospective else frames,
                    lines,
                    acceleration=plan.acceleration,
                    acs_lines=plan.acs_lines,
                    seed=plan.seed + 1000 * number,
                )
                for number in range(plan.slices)
            ]
        )
        self._mask = partial_fourier_mask(self._mask, plan.partial_fourier)
        if not self._mask.any(axis=2).all():
            raise SettingsError("some frames would have no line at all; lower the acceleration or add ACS lines")
        if retrospective:
            self._order, self._r_waves, self._triggers, self._states = _gated_timeline(plan, self._mask)
            self._mask = np.repeat(self._mask, frames, axis=1)
        else:
            self._order, self._r_waves = _timeline(plan, self._mask)
            self._triggers = self._r_waves
        self._cardiac_phase, self._respiration = _motion(plan, self._order, self._r_waves)
        if not retrospective:
            numbers = np.repeat(np.arange(plan.slices), frames)
            self._states = np.stack([numbers, self._cardiac_phase.ravel(), self._respiration.ravel()], axis=1)
        self._covariance = noise_covariance(plan.coils, seed=plan.seed)
        self._root = np.linalg.cholesky(self._covariance.astype(np.complex128)).astype(np.complex64)
        self._slices: dict[int, _SliceSource] = {}
        self._image = np.zeros((plan.slices, frames, *plan.image_matrix), np.complex64)
        self._drawn = np.zeros((plan.slices, frames), np.bool_)
        self.header = _header(plan, 1 + int(self._order["segment"].max()))

    def items(self) -> Iterator[Readouts | Waveform]:
        """Make the messages of the scan in the order of acquisition; every call makes the same ones."""
        plan, order = self.plan, self._order
        sent = 0
        packets = self._ecg_packets()
        packet = next(packets, None)
        if plan.snr and plan.noise_readouts:
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
                    measured = self._measured(int(key))[..., plan.dropped_samples :]
                    kspace[int(key)] = measured.swapaxes(0, 1)
            data = np.empty((last - first, plan.coils, plan.encoded_x - plan.dropped_samples), np.complex64)
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
            sent += len(data)
            yield Readouts(headers[first:last], data)

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
        return self._kspace(number, frame)[:, self._mask[number, frame]]

    def _kspace(self, number: int, frame: int) -> NDArray[np.complex64]:
        """Noise-free k-space ``(coil, ky, kx)`` of a frame; keeps the image it belongs to."""
        kspace, image = self._source(number).frame(
            float(self._cardiac_phase[number, frame]), float(self._respiration[number, frame])
        )
        for axis, size in enumerate(self.plan.image_matrix):
            image = _padded(image, axis, size)
        self._image[number, frame] = image
        self._drawn[number, frame] = True
        return kspace

    def _noise(self, stream: int, readouts: int, samples: int, deviation: float) -> NDArray[np.complex64]:
        """Coloured noise ``(readout, coil, sample)``; `stream` picks an independent realisation."""
        rng = np.random.default_rng([self.plan.seed, 51, stream])
        white = rng.standard_normal((readouts, self.plan.coils, 2 * samples), np.float32).view(np.complex64)
        return np.asarray((np.float32(deviation) * self._root) @ white)

    def _headers(self) -> NDArray[np.void]:
        """Headers of all image readouts in the order of acquisition."""
        plan, order = self.plan, self._order
        headers = np.zeros(len(order), ACQUISITION_HEADER)
        noise_readouts = plan.noise_readouts if plan.snr else 0
        self._common(headers, noise_readouts, order["time"])
        headers["number_of_samples"] = plan.encoded_x - plan.dropped_samples
        headers["center_sample"] = plan.encoded_x // 2 - plan.dropped_samples
        headers["sample_time_us"] = plan.sample_time
        headers["position"] = plan.positions[order["slice"]]
        counters = headers["idx"]
        counters["kspace_encode_step_1"] = order["row"] - plan.dropped_lines
        for name in ("slice", "average", "segment"):
            counters[name] = order[name]
        counters[plan.time_axis] = order["frame"]
        if "SIEMENS" in plan.vendor.upper():
            counters["user"][:, 5] = plan.encoded_y // 2 - plan.dropped_lines

        flags = headers["flags"]
        if plan.reversed_readouts:
            reverse = order["row"] % 2 == 1
            flags[reverse] |= AcquisitionFlag.REVERSE.bit
            headers["center_sample"][reverse] = headers["number_of_samples"][reverse] - 1 - plan.encoded_x // 2
            headers["center_sample"][reverse] += plan.dropped_samples
        keys = order["slice"] * plan.frames + (0 if plan.gating == "retrospective" else order["frame"])
        _, first = np.unique(keys, return_index=True)
        _, last = np.unique(keys[::-1], return_index=True)
        flags[first] |= AcquisitionFlag.FIRST_IN_SLICE.bit
        flags[len(order) - 1 - last] |= AcquisitionFlag.LAST_IN_SLICE.bit
        flags[-1] |= AcquisitionFlag.LAST_IN_MEASUREMENT.bit
        if plan.sampling != "full":
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
        headers["measurement_uid"] = _MEASUREMENT_UID
        headers["scan_counter"] = counted + 1 + np.arange(len(headers))
        headers["acquisition_time_stamp"] = _ticks(plan.start_time + times) % _TICKS_PER_DAY
        headers["physiology_time_stamp"][:, 0] = _ticks(cardiac_position(times, self._triggers)[0])
        headers["available_channels"] = headers["active_channels"] = plan.coils
        for name, direction in zip(("read_dir", "phase_dir", "slice_dir"), plan.directions, strict=True):
            headers[name] = direction

    def _noise_scan(self) -> Readouts:
        """The noise scan: its own length and dwell time, hence its own bandwidth and noise power.

        Power goes with the bandwidth, 1 / dwell; on top of that the receiver passes only the share
        ``relativeReceiverNoiseBandwidth`` of the noise at the full bandwidth of a noise readout.
        """
        plan = self.plan
        headers = np.zeros(plan.noise_readouts, ACQUISITION_HEADER)
        times = np.arange(-plan.noise_readouts, 0, dtype=np.float64) * _NOISE_INTERVAL - 0.5
        self._common(headers, 0, times)
        headers["number_of_samples"] = _NOISE_SAMPLES
        headers["sample_time_us"] = _NOISE_DWELL
        headers["position"] = plan.positions[0]
        headers["flags"] = AcquisitionFlag.NOISE.bit
        power = plan.sample_time / _NOISE_DWELL * _NOISE_BANDWIDTH
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
            header["measurement_uid"] = _MEASUREMENT_UID
            header["time_stamp"] = _ticks(np.array(self.plan.start_time + start)) % _TICKS_PER_DAY
            header["number_of_samples"], header["channels"] = _ECG_PACKET, len(data)
            header["sample_time_us"] = _ECG_SAMPLE * 1e6
            yield float(times[-1]), Waveform(header, data)


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
        self._fine_maps = coil_maps_at(plan.coils, y, x, slice_offset_mm=offset, seed=plan.seed)
        matrix, fov = (plan.matrix_y, plan.matrix_x), (plan.field_of_view_y, plan.field_of_view_x)
        self.maps = coil_maps(plan.coils, matrix, fov, slice_offset_mm=offset, seed=plan.seed)
        self._weights = self.maps.conj() / np.sqrt((np.abs(self.maps) ** 2).sum(0, keepdims=True))

    def frame(self, time: float, respiration: float) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
        """Return k-space ``(coil, ky, kx)`` of the encoded matrix and the combined image ``(y, x)``."""
        plan = self._plan
        fine = self._fine_maps * self._thorax.frame(time, respiration)
        # One axis at a time, dropping the high frequencies of the first before the second is transformed.
        half = _crop(_fft(fine, 1), 1, plan.encoded_y)
        wide = np.zeros((*half.shape[:2], _SUPERSAMPLING * plan.encoded_x), np.complex64)
        wide[:, :, self._columns] = half
        kspace = _crop(_fft(wide, 2), 2, plan.encoded_x) / np.float32(_SUPERSAMPLING)
        images = _crop(_ifft(kspace, 2), 2, plan.matrix_x)
        images = _crop(_ifft(images, 1), 1, plan.matrix_y)
        return kspace, (self._weights * images).sum(0)


def simulate(plan: ScanPlan) -> Scan:
    """Simulate a scan.

    Parameters
    ----------
    plan
        What to simulate.

    Returns
    -------
    Scan
        ``header`` is the ISMRMRD XML, ``items()`` makes the messages, ``truth`` what is to be found.
    """
    return Scan(plan)


def write_simulation(plan: ScanPlan, path: Path) -> Path:
    """Simulate a scan into an ISMRMRD HDF5 file and its truth beside it.

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
    truth = path.with_name(f"{path.stem}_truth.npz")
    scan.truth.save(truth)
    return truth


def _ticks(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(seconds / _TICK + 1e-6).astype(np.int64)


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


def _timeline(plan: ScanPlan, mask: NDArray[np.bool_]) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    """Order all image readouts and give each its time; also the R waves in s, one at 0."""
    order = np.zeros(plan.averages * int(mask.sum()), _ORDER)
    numbers, frames, rows = np.nonzero(mask)
    for name, values in (("slice", numbers), ("frame", frames), ("row", rows)):
        order[name] = np.tile(values, plan.averages)
    order["average"] = np.repeat(np.arange(plan.averages), len(rows))
    order["line"] = np.tile((np.cumsum(mask, axis=2) - 1)[mask], plan.averages)
    order["segment"] = order["line"] // plan.segments if plan.segments else 0
    group = order["slice"] if plan.slice_order == "sequential" else np.zeros(len(order), np.int64)
    slowest = (group, order["segment"], order["average"], order["frame"])
    if not plan.segments:
        slowest = (group, order["frame"], order["average"], order["segment"])
    order = order[np.lexsort((*slowest, order["line"], order["slice"])[::-1])]  # lexsort sorts by its last key first
    group = order["slice"] if plan.slice_order == "sequential" else np.zeros(len(order), np.int64)
    order["block"] = _runs(group, *(order[name] for name in (("segment", "average") if plan.segments else ("frame",))))
    order["state"] = order["slice"] * plan.frames + order["frame"]
    events = _runs(order["block"], order["average"], order["frame"])

    spacing = plan.repetition_time / 1000
    mean_rr = 60.0 / plan.heart_rate
    lengths = np.bincount(events) * spacing
    beats = math.ceil(
        len(order) * spacing / (0.4 * mean_rr)
        if plan.time_axis == "repetition"
        else (lengths / (0.4 * mean_rr) + 2).sum()
    )
    before = math.ceil((plan.noise_readouts * _NOISE_INTERVAL + 2.0) / (0.4 * mean_rr))
    rr = rr_intervals(
        before + beats + 4,
        heart_rate=plan.heart_rate,
        variability=plan.rr_variability,
        ectopic=before + 2 if plan.ectopic_beat else None,
        seed=plan.seed,
    )
    r_waves = np.concatenate([[0.0], np.cumsum(rr)])
    r_waves -= r_waves[before]
    if plan.time_axis == "repetition":
        order["time"] = np.arange(len(order)) * spacing
    elif plan.segments:
        # Every block has a beat of its own in which each frame has its slot.
        beat = before + order["block"]
        slot = rr[beat] / plan.frames
        place = np.arange(len(order)) - np.searchsorted(events, events)
        longest = plan.segments * (plan.slices if plan.slice_order == "interleaved" else 1)
        order["time"] = r_waves[beat] + order["frame"] * slot + place * np.minimum(spacing, slot / longest)
    else:
        # Every frame waits for its place in the next beat that is free.
        starts = np.empty(len(lengths))
        free = 0.0
        first = np.searchsorted(events, np.arange(len(lengths)))
        for event, frame in enumerate(order["frame"][first]):
            candidates = r_waves[before:-1] + rr[before:] * (frame / plan.frames)
            starts[event] = candidates[np.searchsorted(candidates, free)]
            free = starts[event] + lengths[event]
        order["time"] = starts[events] + (np.arange(len(order)) - first[events]) * spacing
    return order, r_waves[: np.searchsorted(r_waves, order["time"][-1] + 2.0) + 2]


def _gated_timeline(
    plan: ScanPlan, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.void], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The readouts of a retrospectively gated scan, R waves and triggers in s, and ``(state, 3)`` of the object.

    The sequence runs without a break and sees the triggers only: every pass is one segment, and a pass that begins
    after a trigger belongs to the next beat. A state is slice, cycle fraction and respiration.
    """
    spacing, mean_rr = plan.repetition_time / 1000, 60.0 / plan.heart_rate
    rows = [np.flatnonzero(mask[number, 0]) for number in range(plan.slices)]
    segments = [-(-len(lines) // plan.segments) if plan.segments else 1 for lines in rows]
    before = math.ceil((plan.noise_readouts * _NOISE_INTERVAL + 2.0) / (0.4 * mean_rr))
    rr = rr_intervals(
        before + 3 * plan.averages * sum(segments) + _MOST_REMEASURED + 8,
        heart_rate=plan.heart_rate,
        variability=plan.rr_variability,
        ectopic=before + 2 if plan.ectopic_beat else None,
        seed=plan.seed,
    )
    r_waves = np.concatenate([[0.0], np.cumsum(rr)])
    r_waves -= r_waves[before]
    triggers = seen_triggers(
        r_waves,
        missed=before + plan.missed_trigger - 1 if plan.missed_trigger else None,
        false=before + plan.false_trigger - 1 if plan.false_trigger else None,
    )
    begin = int(np.searchsorted(triggers, 0.0))
    passes: list[NDArray[np.void]] = []
    time, block, remeasured = 0.0, 0, 0
    for number, segment in ((n, s) for n in range(plan.slices) for s in range(segments[n])):
        size = plan.segments or len(rows[number])
        lines = np.arange(len(rows[number]))[segment * size : (segment + 1) * size]
        average = 0
        while average < plan.averages:
            phase = 0
            while time < triggers[begin + block + 1] - 1e-9:
                one = np.zeros(len(lines), _ORDER)
                one["slice"], one["segment"], one["average"] = number, segment, average
                one["frame"], one["line"], one["row"], one["block"] = phase, lines, rows[number][lines], block
                one["time"] = time + spacing * np.arange(len(lines))
                time += spacing * len(lines)
                phase += 1
                passes.append(one)
            length = triggers[begin + block + 1] - triggers[begin + block]
            block += 1
            if plan.remeasure and abs(length / mean_rr - 1.0) > _ARRHYTHMIA and remeasured < _MOST_REMEASURED:
                remeasured += 1  # the same counters once more, in the next beat
            else:
                average += 1
    order = np.concatenate(passes)
    r_waves = r_waves[: np.searchsorted(r_waves, order["time"][-1] + 2.0) + 2]
    since, _ = cardiac_position(order["time"], r_waves)
    beat = np.searchsorted(r_waves, order["time"], side="right") - 1
    lengths = np.diff(r_waves)
    typical = float(np.median(lengths[np.unique(beat)]))
    position = cycle_position(since, lengths[beat], typical, stretch=plan.rr_stretch)
    steps = np.floor(position * _CYCLE_STEPS).astype(np.int64) + order["slice"] * _CYCLE_STEPS
    states, order["state"] = np.unique(steps, return_inverse=True)
    numbers, moments = np.divmod(states, _CYCLE_STEPS)
    phase_of = (moments + 0.5) / _CYCLE_STEPS
    return order, r_waves, triggers, np.stack([numbers, phase_of, np.zeros(len(states))], axis=1)


def _runs(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the runs of rows in which no column changes."""
    change = np.zeros(len(columns[0]), np.bool_)
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return np.cumsum(change)


def _motion(
    plan: ScanPlan, order: NDArray[np.void], r_waves: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cardiac phase and respiratory shift (mm) that each ``(slice, frame)`` shows."""
    shape = (plan.slices, plan.frames)
    if plan.time_axis == "phase":
        return np.broadcast_to(np.arange(plan.frames) / plan.frames, shape), np.zeros(shape)
    keys = order["slice"] * plan.frames + order["frame"]
    middle = np.bincount(keys, order["time"], math.prod(shape)) / np.bincount(keys, minlength=math.prod(shape))
    phase = cardiac_position(middle, r_waves)[1]
    # about 15 breaths per minute with a pause at end expiration
    breath = plan.respiration * np.cos(np.pi * middle / 4.0) ** 4
    return phase.reshape(shape), breath.reshape(shape)


def _header(plan: ScanPlan, segments: int) -> str:
    """ISMRMRD header as XML."""
    fov_y, fov_x = plan.encoded_fov
    image_y, image_x = plan.image_matrix
    lines = plan.encoded_y - plan.dropped_lines
    user = ""
    if plan.gating == "retrospective":
        parameters = {"RetroGatedImages": plan.frames, "RetroGatedSegmentSize": plan.segments}
        user = "".join(
            f"\n    <userParameterLong><name>{name}</name><value>{value}</value></userParameterLong>"
            for name, value in parameters.items()
        )
        user = f"\n  <userParameters>{user}\n  </userParameters>"
    frames: dict[str, int] = {"phase": 1, "repetition": 1}
    frames[plan.time_axis] = plan.frames
    limits = {
        "kspace_encoding_step_1": (lines - 1, plan.encoded_y // 2 - plan.dropped_lines),
        "kspace_encoding_step_2": (0, 0),
        "average": (plan.averages - 1, 0),
        "slice": (plan.slices - 1, 0),
        "contrast": (0, 0),
        "phase": (frames["phase"] - 1, 0),
        "repetition": (frames["repetition"] - 1, 0),
        "set": (0, 0),
        "segment": (segments - 1, 0),
    }
    acceleration = 1 if plan.sampling == "full" else plan.acceleration
    mode = "other"
    if plan.sampling == "interleaved":
        mode = "interleaved"
    elif plan.sampling != "full" and plan.acs_lines:
        mode = "embedded"
    interleaving = (
        f"\n      <interleavingDimension>{plan.time_axis}</interleavingDimension>" if mode == "interleaved" else ""
    )
    waveform = ""
    if plan.waveforms:
        waveform = f"""
  <waveformInformation>
    <waveformName>ECG</waveformName>
    <waveformType>ecg</waveformType>
    <userParameters>
      <userParameterLong><name>TriggerChannel</name><value>{len(_ECG_LEADS)}</value></userParameterLong>
    </userParameters>
  </waveformInformation>"""
    limit_lines = "\n".join(
        f"      <{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center></{name}>"
        for name, (maximum, centre) in limits.items()
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <measurementID>00000_{plan.seed}_1_{_MEASUREMENT_UID}</measurementID>
    <patientPosition>HFS</patientPosition>
    <protocolName>cine_simulation</protocolName>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>{html.escape(plan.vendor)}</systemVendor>
    <systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>{_NOISE_BANDWIDTH}</relativeReceiverNoiseBandwidth>
    <receiverChannels>{plan.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>
      {_space(plan.encoded_x, plan.encoded_y, fov_x, fov_y, plan.slice_thickness)}
    </encodedSpace>
    <reconSpace>
      {_space(image_x, image_y, plan.field_of_view_x, plan.field_of_view_y, plan.slice_thickness)}
    </reconSpace>
    <encodingLimits>
{limit_lines}
    </encodingLimits>
    <trajectory>cartesian</trajectory>
    <parallelImaging>
      <accelerationFactor>
        <kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>
        <kspace_encoding_step_2>1</kspace_encoding_step_2>
      </accelerationFactor>
      <calibrationMode>{mode}</calibrationMode>{interleaving}
    </parallelImaging>
  </encoding>
  <sequenceParameters>
    <TR>{plan.repetition_time * max(plan.segments, 1):g}</TR>
    <TE>{plan.repetition_time / 2:g}</TE>
    <flipAngle_deg>60</flipAngle_deg>
    <sequence_type>SSFP</sequence_type>
    <echo_spacing>{plan.repetition_time:g}</echo_spacing>
  </sequenceParameters>{user}{waveform}
</ismrmrdHeader>
"""


def _space(nx: int, ny: int, fov_x: float, fov_y: float, thickness: float) -> str:
    size = f"<matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>"
    return f"{size}<fieldOfView_mm><x>{fov_x:g}</x><y>{fov_y:g}</y><z>{thickness:g}</z></fieldOfView_mm>"
