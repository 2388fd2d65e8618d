"""What to simulate: one field for every choice, checked against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError
from recon_core.options import Options, option
from recon_core.simulate.phantom import BLOOD_SIGNAL
from recon_core.simulate.sampling import SAMPLINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_READOUT_TIME = 1100.0  # us
_CARTESIAN = (  # that radial scans cannot have
    "partial_fourier",
    "phase_resolution",
    "phase_oversampling",
    "asymmetric_echo",
    "segments",
    "averages",
    "gating",
    "removes_oversampling",
    "reversed_readouts",
    "alternating_order",
    "grid_spokes",
)


@dataclass(frozen=True, kw_only=True)
class ScanPlan(Options):
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
        "lines per frame: all, every R-th, every R-th moving from frame to frame, random, or denser towards the centre "
        "and moving by the golden ratio",
        choices=SAMPLINGS,
    )
    trajectory: str = option(
        "cartesian",
        "cartesian, or radial spokes at uniform angles, the same in every frame, at golden or at tiny golden (the "
        "seventh) ones, which go on from frame to frame; sampling, acceleration and ACS lines are of Cartesian scans",
        choices=("cartesian", "uniform", "golden", "tiny_golden"),
    )
    spokes: int = option(20, "radial: spokes of a frame", minimum=1, maximum=4096)
    grid_spokes: int = option(
        0,
        "points of the Cartesian grid along so many golden-angle spokes in every frame instead of whole lines, with "
        "zeros elsewhere, as publications call radial; needs sampling full",
        minimum=0,
        maximum=4096,
    )
    writes_trajectory: str = option(
        "pixel",
        "radial: positions that the readouts carry, in cycles per pixel, or per field of view (fov), with density "
        "weights (weighted), or none; without the delays",
        choices=("pixel", "fov", "weighted", "none"),
    )
    delay_x: float = option(0.0, "radial: gradient delay along x in samples", minimum=-10.0, maximum=10.0)
    delay_y: float = option(0.0, "radial: gradient delay along y in samples", minimum=-10.0, maximum=10.0)
    delay_xy: float = option(0.0, "radial: gradient delay between both in samples", minimum=-10.0, maximum=10.0)
    off_resonance: float = option(
        0.0,
        "radial: frequency in Hz by which the field is off where it is worst, at the side of the heart near the lung, "
        "which blurs the image of spokes there; not in the truth",
        minimum=-2000.0,
        maximum=2000.0,
    )
    acceleration: int = option(3, "acceleration R; not used by full sampling", minimum=1, maximum=32)
    acs_lines: int = option(
        24, "autocalibration lines in every frame; not used by full sampling", minimum=0, maximum=512
    )
    partial_fourier: float = option(
        1.0, "share of the lines that is measured, the first ones missing", minimum=0.55, maximum=1.0
    )
    phase_resolution: float = option(
        1.0,
        "share of the encoded lines that is measured, the outer ones on both sides missing",
        minimum=0.3,
        maximum=1.0,
    )
    header_center: str = option(
        "true",
        "line of the k-space centre in the header: true, or middle of all lines, although partial_fourier leaves the "
        "first ones out, as the Siemens converter writes it",
        choices=("true", "middle"),
    )
    phase_oversampling: float = option(
        0.0, "how much the encoded field of view along y exceeds the image", minimum=0.0, maximum=2.0
    )
    oversampling: float = option(2.0, "readout oversampling", minimum=1.0, maximum=4.0)
    removes_oversampling: bool = option(
        False, "send readouts without the oversampling of the header, as some senders do"
    )
    asymmetric_echo: float = option(
        0.0, "share of the samples missing at the front of each readout", minimum=0.0, maximum=0.4
    )
    reversed_readouts: bool = option(
        False, "measure every second line from its other end, as bipolar readouts do, and flag it as reversed"
    )
    interpolation: float = option(
        1.0,
        "factor by which the image matrix of the header exceeds the measured one, as with interpolation",
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
    phase_counter: bool = option(False, "number the frames of a real-time scan by phase, as Siemens scanners do")
    alternating_order: bool = option(
        False, "without segments: measure the lines of every second frame from the last to the first"
    )
    continuous: bool = option(
        False,
        "real-time scans: measure without a frame counter, one long run of lines; frames is how many it is long",
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
    noise_scan: str = option(
        "stream",
        "where the noise readouts are: in front of the images, or in a measurement of their own (dependent), which the "
        "header names and which is written to a file of its own",
        choices=("stream", "dependent"),
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
        0, "retrospective gating: beat, from 1, without a trigger at its R wave; 0 for none", minimum=0, maximum=10000
    )
    false_trigger: int = option(
        0,
        "retrospective gating: beat, from 1, with a second trigger at its T wave; 0 for none",
        minimum=0,
        maximum=10000,
    )
    ejection_fraction: float = option(0.6, "stroke volume over end-diastolic volume", minimum=0.0, maximum=0.9)
    respiration: float = option(
        0.0,
        "respiratory shift of heart and abdomen in mm, peak to peak; real-time scans only",
        minimum=0.0,
        maximum=40.0,
    )
    waveforms: bool = option(True, "send the ECG along")
    stamps: str = option(
        "all",
        "time stamps of the readouts: all, those of the acquisition without the time since the trigger, or none; the "
        "others are 0, as of a converter that does not fill them",
        choices=("all", "acquisition", "none"),
    )
    rotation_x: float = option(
        0.0, "turn of the slice about the left-right axis in degrees", minimum=-180.0, maximum=180.0
    )
    rotation_y: float = option(
        0.0, "turn of the slice about the front-back axis in degrees", minimum=-180.0, maximum=180.0
    )
    rotation_z: float = option(
        0.0, "turn of the slice within its plane in degrees, before the others", minimum=-180.0, maximum=180.0
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
    lost_readouts: int = option(0, "first image readouts that never arrive", minimum=0, maximum=100000)
    uneven_frames: int = option(
        0, "the slices, in turn, end 0, 1, ... up to this many frames early", minimum=0, maximum=1000
    )
    ungated: bool = option(
        False, "no gating signal: the time since the last trigger is huge and only rises, as scanners then send it"
    )
    pilot_tone: bool = option(False, "the header says that a pilot tone was on; the data hold none")
    vendor: str = option(
        "cinestream simulation",
        "system vendor in the header; gives the ticks of the time stamps, SIEMENS also idx.user[5]",
    )
    seed: int = option(0, "same seed, same scan", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what no scan can be.

        Raises
        ------
        SettingsError
            If a value is not allowed or two of them contradict each other.
        """
        super().__post_init__()
        if self.time_axis == "repetition" and (self.segments or self.averages > 1):
            raise SettingsError("a real-time scan (time_axis repetition) has neither segments nor averages")
        if self.time_axis == "phase" and self.continuous:
            raise SettingsError("continuous lines are measured in real time: set time_axis to repetition")
        if self.time_axis == "phase" and self.respiration:
            raise SettingsError("respiration needs a real-time scan: set time_axis to repetition")
        if self.gating == "retrospective" and (self.time_axis != "phase" or self.sampling == "interleaved"):
            raise SettingsError(
                "retrospective gating counts phases and measures the same lines in all of them; take time_axis phase "
                "and another sampling than interleaved"
            )
        if self.phase_counter and self.time_axis != "repetition":
            raise SettingsError("phase_counter is for real-time scans: set time_axis to repetition")
        if self.alternating_order and (self.segments or self.gating == "retrospective"):
            raise SettingsError("alternating_order is for scans without segments and retrospective gating")
        if self.uneven_frames >= self.frames:
            raise SettingsError(f"uneven_frames must leave one of the {self.frames} frames, got {self.uneven_frames}")
        if self.uneven_frames and self.gating == "retrospective":
            raise SettingsError("retrospective gating makes all frames of a slice; it has no uneven_frames")
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
        if self.is_radial:
            self._check_radial()
        if self.grid_spokes and (
            self.sampling != "full" or self.removes_oversampling or self.gating == "retrospective"
        ):
            raise SettingsError("grid_spokes needs sampling full, gating prospective and no removes_oversampling")
        if self.removes_oversampling and self.asymmetric_echo:
            raise SettingsError("oversampling is removed from whole readouts: set asymmetric_echo to 0")
        if self.sampling != "full" and not self.is_radial:
            if self.acceleration > self.wanted_lines:
                raise SettingsError(
                    f"acceleration must not exceed the {self.wanted_lines} lines, got {self.acceleration}"
                )
            if self.acs_lines > 2 * (self.encoded_y // 2 - self.dropped_lines):
                raise SettingsError(
                    f"{self.acs_lines} ACS lines do not fit into {self.encoded_y} lines with this partial_fourier"
                )

    def _check_radial(self) -> None:
        """Refuse what only Cartesian scans can have."""
        defaults = {item.name: item.default for item in fields(self)}
        wrong = [name for name in _CARTESIAN if getattr(self, name) != defaults[name]]
        if wrong:
            raise SettingsError(f"radial scans have no {', '.join(wrong)}; leave out {wrong[0]}, or the trajectory")
        pixel = self.field_of_view_x / self.matrix_x, self.field_of_view_y / self.matrix_y
        if not math.isclose(*pixel, rel_tol=1e-3) or self.matrix_y > self.matrix_x:
            raise SettingsError(
                f"radial scans have square pixels and no more rows than columns; got {self.matrix_x} x {self.matrix_y} "
                f"pixels of {pixel[0]:.3g} x {pixel[1]:.3g} mm"
            )

    @property
    def is_radial(self) -> bool:
        """Whether it measures spokes."""
        return self.trajectory != "cartesian"

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
    def frame_counter(self) -> str:
        """Name of the counter of the frames."""
        return "phase" if self.phase_counter else self.time_axis

    @property
    def wanted_lines(self) -> int:
        """Lines of the phase resolution, around the centre of k-space."""
        return round(self.encoded_y * self.phase_resolution)

    @property
    def dropped_lines(self) -> int:
        """First lines of the encoded ones that phase resolution and partial Fourier leave out."""
        partial = self.wanted_lines - round(self.wanted_lines * self.partial_fourier)
        return self.encoded_y // 2 - self.wanted_lines // 2 + partial

    @property
    def measured_lines(self) -> int:
        """Lines from the first to the last that a scan may measure; spokes of a frame."""
        if self.is_radial:
            return self.spokes
        return round(self.wanted_lines * self.partial_fourier)

    @property
    def dropped_samples(self) -> int:
        """First samples that an asymmetric echo leaves out."""
        return round(self.encoded_x * self.asymmetric_echo)

    @property
    def samples(self) -> int:
        """Samples of a readout that is sent."""
        return self.matrix_x if self.removes_oversampling else self.encoded_x - self.dropped_samples

    @property
    def center_sample(self) -> int:
        """The sample of such a readout at the k-space centre."""
        return self.matrix_x // 2 if self.removes_oversampling else self.encoded_x // 2 - self.dropped_samples

    @property
    def sample_time(self) -> float:
        """Dwell time of an image readout in us."""
        return max(round(_READOUT_TIME / self.encoded_x, 1), 0.1)

    @property
    def readout_times(self) -> NDArray[np.float64]:
        """``(sample,)`` s from the echo to each sample of a readout."""
        return np.asarray((np.arange(self.samples) - self.center_sample) * (self.sample_time * 1e-6), np.float64)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the real (or imaginary) part of the noise in a sample, mean over coils."""
        return BLOOD_SIGNAL / self.snr if self.snr else 0.0

    @property
    def has_noise_file(self) -> bool:
        """The noise is a separate measurement."""
        return self.noise_scan == "dependent" and bool(self.snr and self.noise_readouts)

    @property
    def slice_offsets(self) -> NDArray[np.float64]:
        """Positions of the slices along the slice direction in mm, 0 at the centre of the stack."""
        numbers = np.arange(self.slices, dtype=np.float64)
        return (numbers - (self.slices - 1) / 2) * (self.slice_thickness + self.slice_gap)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Rows read, phase and slice direction in patient coordinates (left, posterior, superior)."""
        a, b, c = (math.radians(angle) for angle in (self.rotation_x, self.rotation_y, self.rotation_z))
        about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
        about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
        about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
        return np.asarray((about_y @ about_x @ about_z).T)

    @property
    def positions(self) -> NDArray[np.float64]:
        """``(slice, 3)`` centres of the slices in mm, patient coordinates; pixel ``n // 2`` lies there."""
        centre = np.array([self.offset_left, self.offset_back, self.offset_head])
        return np.asarray(centre + self.slice_offsets[:, None] * self.directions[2])
