"""What a raw file holds and what a pipeline makes of it, as facts of the report."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gadgets.gating.gate import Gate
from gadgets.inspection.report import Fact
from gadgets.preparation.readouts import ReadoutGrid, sender_habit
from gadgets.problems import Problems
from gadgets.slices.buffers import frame_counter
from gadgets.slices.complete import describe
from gadgets.wire.messages import AcquisitionFlag
from gadgets.wire.vendor import DAY, tick_length
from recon_core.errors import DataError, ModelError
from recon_core.gating.beats import REGULAR
from recon_core.methods import find_method
from recon_core.off_grid.delays import find_delays
from recon_core.off_grid.trajectory import angle_law, are_straight
from recon_core.weights.manifest import find_weights
from recon_core.words import listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.inspection.recording import RecordingEngine
    from gadgets.inspection.statistics import Shape, Tally, WaveformCount
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import ScanHeader
    from recon_core.data import CineSlice
    from recon_core.gating.beats import Rhythm
    from recon_core.off_grid.delays import Delays
    from recon_core.trust.ranges import Sampling

_WAVEFORMS = {0: "ECG", 1: "pulse", 2: "respiration", 3: "external", 4: "external"}
_LEARNING = 5  # added to the id while the scanner learns the signal
_MOST_LISTED = 12  # values, slices or kinds of readouts that are listed one by one


# --- header and readouts ----------------------------------------------------------------------------------------------


def header_facts(header: ScanHeader) -> list[Fact]:
    """Vendor, protocol, encodings and dependencies, as the header has them."""
    facts = [
        Fact("vendor", header.vendor or "not said", header.vendor),
        Fact("protocol", header.protocol_name or "not said", header.protocol_name),
    ]
    for number, encoding in enumerate(header.encodings):
        name = f"encoding {number}" if len(header.encodings) > 1 else "encoding"
        spaces = {kind: getattr(encoding, kind) for kind in ("encoded", "recon")}
        words = [
            f"{kind} {_times(space.matrix)} over {_times(space.field_of_view)} mm" for kind, space in spaces.items()
        ]
        if encoding.off_grid:
            words[0] = f"{encoding.trajectory}, {encoding.spoke} samples across k-space; grid of the image: {words[0]}"
        words.append(f"acceleration {encoding.acceleration}, calibration {encoding.calibration_mode or 'not said'}")
        limits = {counter: dataclasses.astuple(limit) for counter, limit in encoding.limits.items()}
        value = {kind: dataclasses.asdict(space) for kind, space in spaces.items()}
        facts.append(
            Fact(
                name,
                "\n".join(words),
                {**value, "acceleration": encoding.acceleration, "limits": limits, "mode": encoding.calibration_mode},
            )
        )
    if header.user_parameters:
        parameters = listed([f"{name} {value}" for name, value in header.user_parameters.items()])
        facts.append(Fact("user parameters", parameters, header.user_parameters))
    if header.dependencies:
        needs = listed([f"{kind} {number}" for kind, number in header.dependencies])
        facts.append(Fact("other measurements", needs, [list(one) for one in header.dependencies]))
    return facts


def readout_facts(header: ScanHeader, tally: Tally) -> list[Fact]:
    """Kinds, flags, shapes, counters and values of the readouts, and the waveforms among them."""
    kinds: dict[str, int] = {}
    for shape, count in tally.shapes.items():
        kinds[shape.kind] = kinds.get(shape.kind, 0) + count
    flags = {_flag_name(number): count for number, count in sorted(tally.flags.items())}
    facts = [
        Fact("count", ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none", kinds),
        Fact(
            "flags",
            listed(
                [*(f"{name} {count}" for name, count in flags.items()), f"no flag {tally.unflagged}"], len(flags) + 1
            ),
            {**flags, "none": tally.unflagged},
        ),
    ]
    common = tally.shapes.most_common(_MOST_LISTED)
    text = "\n".join(f"{count} {_shape_in_words(header, shape)}" for shape, count in common)
    facts.append(Fact("shapes", text or "none", [{**shape._asdict(), "count": count} for shape, count in common]))
    coils = sorted({shape.coils for shape in tally.shapes if shape.kind != "other"})
    said = f"the header says {header.receiver_channels}" if header.receiver_channels else "the header does not say"
    text = f"{' and '.join(map(str, coils))} in the readouts, {said}"
    facts.append(Fact("coils", text, {"readouts": coils, "header": header.receiver_channels}))
    facts += _counter_facts(header, tally.counters())
    text = (
        f"{tally.not_finite} with values that are not finite, {tally.zero} all zero; largest value {tally.largest:.3g}"
    )
    facts.append(Fact("values", text, {"not_finite": tally.not_finite, "zero": tally.zero, "largest": tally.largest}))
    return [*facts, *(_waveform_fact(number, waveform) for number, waveform in sorted(tally.waveforms.items()))]


def _counter_facts(header: ScanHeader, counters: dict[str, NDArray[np.intp]]) -> list[Fact]:
    if not counters:
        return []
    limits, rows = header.encodings[0].limits, []
    for name, values in counters.items():
        limit = limits.get("kspace_encoding_step" + name[-2:] if name.startswith("kspace") else name)
        if len(values) > 1 or values[0] or (limit and limit.maximum):
            said = f", the header says to {limit.maximum}" if limit else ""
            rows.append(f"{name} {values[0]} to {values[-1]}, {len(values)} values{said}")
    values_by = {
        name: {"least": int(values[0]), "most": int(values[-1]), "values": len(values)}
        for name, values in counters.items()
    }
    return [Fact("counters", "\n".join(rows) or "all 0", values_by), _centres(header, counters)]


def _waveform_fact(number: int, waveform: WaveformCount) -> Fact:
    name = _WAVEFORMS.get(number % _LEARNING if number < 2 * _LEARNING else number, "unknown")
    name += " (learning phase)" if _LEARNING <= number < 2 * _LEARNING else ""
    seconds = waveform.samples * waveform.sample_time_us / 1e6
    text = f"{name}: {waveform.packets} packets of {waveform.channels} channels, {seconds:.1f} s of "
    text += f"{waveform.sample_time_us:g} us samples, {waveform.triggers} triggers in the last channel"
    value = {item.name: getattr(waveform, item.name) for item in dataclasses.fields(waveform) if item.repr}
    return Fact(f"waveform {number}", text, value)


def _shape_in_words(header: ScanHeader, shape: Shape) -> str:
    text = (
        f"{shape.kind} of {shape.coils} coils x {shape.samples} samples, centre {shape.center}, {shape.dwell_us:g} us"
    )
    if shape.discard_pre or shape.discard_post:
        text += f", {shape.discard_pre} and {shape.discard_post} to discard"
    if shape.kind not in ("image", "reference") or shape.encoding >= len(header.encodings):
        return text
    if header.encodings[shape.encoding].off_grid:
        return text
    habit = sender_habit(header, "auto")
    grid = ReadoutGrid.of(header.encodings[shape.encoding], shape.samples, shape.center, habit)
    if shape.samples < grid.encoded:
        missing = grid.encoded - shape.samples
        edge = "front" if 2 * shape.center < shape.samples else "end"
        text += f", asymmetric echo: {missing} of {grid.encoded} missing at the {edge}"
    encoded = header.encodings[shape.encoding].encoded.matrix[0]
    if grid.kept < grid.encoded:
        text += f", oversampling {grid.encoded / grid.kept:.3g} is removed"
    elif grid.encoded < encoded:
        text += ", the sender removed the oversampling"
    else:
        text += ", no oversampling"
    return text


def _centres(header: ScanHeader, counters: dict[str, NDArray[np.intp]]) -> Fact:
    limit = header.encodings[0].limits.get("kspace_encoding_step_1")
    own = counters.get("user[5]", np.empty(0, np.intp)).tolist()
    said = f"header {limit.center}" if limit else "not in the header"
    text = f"{said}, readouts (user[5]) {listed(own) or 'none'}"
    lines = header.encodings[0].encoded.matrix[1]
    return Fact(
        "centre line",
        f"{text}; half of the encoded lines is {lines // 2}",
        {"header": limit and limit.center, "readouts": own},
    )


def _flag_name(number: int) -> str:
    try:
        return AcquisitionFlag(number).name
    except ValueError:
        return f"flag {number}"


# --- time -------------------------------------------------------------------------------------------------------------


def time_facts(
    header: ScanHeader,
    settings: Settings,
    records: NDArray[np.void],
    slices: list[CompleteSlice],
    problems: Problems,
) -> list[Fact]:
    """Stamps, and the beats in them; what is wrong with stamps that show beats is added to the problems."""
    tick = tick_length(header.vendor, settings.readouts.stamp_tick)
    stamps = records["acquisition_time_stamp"].astype(np.int64)
    physiology = records["physiology_time_stamp"].astype(np.int64)
    since = physiology[:, 0]
    text = f"{stamps.min()} to {stamps.max()}, {tick:g} ms a tick"
    wraps = int(np.count_nonzero(np.diff(stamps) * tick < -DAY / 2))
    text += f"; midnight passed {wraps} times" if wraps else ""
    facts = [
        Fact("acquisition stamps", text, {"least": int(stamps.min()), "most": int(stamps.max()), "wraps": wraps}),
        Fact(
            "since trigger",
            f"{since.min()} to {since.max()} ticks, falls {np.count_nonzero(np.diff(since) < 0)} times",
            {"least": physiology.min(axis=0).tolist(), "most": physiology.max(axis=0).tolist(), "tick_ms": tick},
        ),
    ]
    gated = {complete.key.slice: complete for complete in slices if complete.gating is not None}
    rows, values = [], []
    for number in np.unique(records["slice"]).tolist():
        here = records[records["slice"] == number]
        rhythm, why, doubts = None, "", Problems()
        try:
            rhythm = Gate(header, settings, doubts).by_stamps(here, f"slice {number}")
            problems.kinds = doubts.kinds | problems.kinds
        except DataError as error:
            why = str(error)
        kind = "retrospective" if number in gated else _kind(here, frame_axis(header, settings, here), rhythm)
        text = why if rhythm is None else _rhythm_in_words(rhythm)
        if number in gated:
            text = gated[number].notes[0]  # which beats, and where they are from
        rows.append(f"slice {number}: {kind}; {text}")
        rr = [] if rhythm is None else [round(length, 1) for length in rhythm.rr.tolist()]
        values.append({"slice": number, "kind": kind, "rr_ms": rr, "reason": why})
    return [*facts, Fact("gating", _some_lines(rows), values)]


def frame_axis(header: ScanHeader, settings: Settings, records: NDArray[np.void]) -> str:
    """The counter of the frames; readouts of an encoding that the header does not have count as the first's."""
    encoding = int(records["encoding_space_ref"][0])
    return frame_counter(
        header.encodings[encoding if encoding < len(header.encodings) else 0], settings.readouts.time_axis
    )


def _kind(records: NDArray[np.void], axis: str, rhythm: Rhythm | None) -> str:
    """Which kind of cine it is, going by how the counter of the frames runs through the beats."""
    others = [name for name in ("encoding_space_ref", "contrast", "set", "repetition") if name != axis]
    first_series = np.all([records[name] == records[name][0] for name in others], axis=0)
    frame = records[axis][first_series].astype(np.int64)
    frames, visits = len(np.unique(frame)), 1 + int(np.count_nonzero(np.diff(frame)))
    if rhythm is None:
        return "no gating" if frames > 1 else "no gating and one frame only"
    if visits > frames:
        return "prospective, segmented"
    if len(rhythm.rr) == 1:
        return "all frames in one beat"
    if frames > len(rhythm.rr):
        return "real time"
    return "prospective, one frame after the other"


def _rhythm_in_words(rhythm: Rhythm) -> str:
    text = f"{len(rhythm.rr)} beats, RR {rhythm.typical:.0f} ms"
    if len(rhythm.rr) > 1:
        text += f" ({', '.join(f'{length:.0f}' for length in rhythm.rr[:_MOST_LISTED].tolist())}"
        text += ", ...)" if len(rhythm.rr) > _MOST_LISTED else ")"
    odd = int(np.count_nonzero(rhythm.grade != REGULAR))
    return text + (f", {odd} not regular" if odd else "")


# --- slices and reconstruction ----------------------------------------------------------------------------------------


class Spokes(NamedTuple):
    """How the readouts of a slice lie that follow no grid."""

    angles: str
    """How they turn, in words."""
    delays: Delays | None
    """None where they cannot be found."""

    @classmethod
    def of(cls, cine: CineSlice) -> Spokes | None:
        """Look at a slice; None of one on the Cartesian grid."""
        if cine.trajectory is None:
            return None
        positions = cine.trajectory.positions[cine.mask]
        straight = are_straight(positions)
        delays = find_delays(cine.kspace.swapaxes(1, 2)[cine.mask], positions) if straight else None
        return cls(angle_law(positions), delays)

    def __str__(self) -> str:
        """In words."""
        if self.delays is None:
            return self.angles
        matter = f"gradient delays in samples {self.delays}" if self.delays.matter else "no gradient delays that matter"
        return f"{self.angles}, {matter}"


def slice_facts(
    records: NDArray[np.void],
    slices: list[CompleteSlice],
    samplings: list[Sampling],
    spokes: list[Spokes | None],
) -> list[Fact]:
    """In which order slices were measured, and how each that is complete was sampled."""
    number = records["slice"].astype(np.int64)
    visits, different = 1 + int(np.count_nonzero(np.diff(number))), len(np.unique(number))
    order = "one slice" if different == 1 else "one after the other" if visits == different else "interleaved"
    facts = [Fact("order", order, {"slices": different, "visits": visits})]
    twice, averages = _repeated(records), int(records["average"].max()) + 1
    facts.append(Fact("averages", f"{averages}", averages))
    facts.append(Fact("measured again", f"{twice} readouts have the counters of an earlier one", twice))
    rows, values = [], []
    for complete, sampling, off_grid in zip(slices, samplings, spokes, strict=True):
        of_frames = [int(complete.lines.min()), int(complete.lines.max())]
        value = {**complete.key._asdict(), "lines_of_frames": of_frames, "notes": list(complete.notes)}
        if off_grid is not None:
            rows.append(
                f"{describe(complete.key)}: {sampling.frames} frames of {_span(complete.lines)} spokes, {off_grid}"
            )
            found = off_grid.delays and off_grid.delays._asdict()
            values.append({**value, "frames": sampling.frames, "angles": off_grid.angles, "delays": found})
            continue
        lines = np.flatnonzero(complete.cine.mask.any(axis=0))
        text = f"{describe(complete.key)}: {sampling.frames} frames of {_span(complete.lines)} lines"
        text += f" out of {sampling.lines}, net R {sampling.acceleration:.3g}, {sampling.pattern} pattern, "
        text += f"{sampling.centre_lines} central lines in every frame"
        if lines[0] or lines[-1] < sampling.lines - 1:
            text += f", rows {lines[0]} to {lines[-1]}"
        share = _partial_fourier(lines, sampling)
        text += f" (partial Fourier {share:.2f})" if share < 1 else ""
        rows.append(text)
        values.append(
            {
                **value,
                **dataclasses.asdict(sampling),
                "rows": [int(lines[0]), int(lines[-1])],
                "partial_fourier": share,
            }
        )
    facts.append(Fact("complete", _some_lines(rows) or "none", values))
    return facts


def _partial_fourier(lines: NDArray[np.intp], sampling: Sampling) -> float:
    """Share of a k-space, symmetric about its centre, that was measured; 1 where both sides reach about as far."""
    center = sampling.lines // 2
    before, after = center - int(lines[0]), int(lines[-1]) - center + 1
    whole = 2 * max(before, after)
    # an accelerated scan ends up to one step before the edge
    as_good_as_equal = abs(before - after) <= max(0.04 * whole, math.ceil(sampling.lines / len(lines)) + 1)
    return 1.0 if as_good_as_equal else round((before + after) / whole, 3)


def _repeated(records: NDArray[np.void]) -> int:
    names = ("encoding_space_ref", "kspace_encode_step_1", "average", "slice", "contrast", "phase", "repetition", "set")
    return len(records) - len(np.unique(np.stack([records[name] for name in names], axis=1), axis=0))


def plan_facts(settings: Settings, tally: Tally, engine: RecordingEngine, slices: list[CompleteSlice]) -> list[Fact]:
    """What the pipeline would do: images, whitening, coils, and how the slices fit the weights of a network."""
    frames = sum(len(complete.frames) for complete in slices)
    noise = sum(count for shape, count in tally.shapes.items() if shape.kind == "noise")
    white = f"from {noise} noise readouts" if engine.whitened else "none"
    facts = [
        Fact("images", f"{frames} of {len(slices)} slices", {"images": frames, "slices": len(slices)}),
        Fact("whitening", white, engine.whitened),
        Fact("coils used", str(engine.coils), engine.coils),
    ]
    if not find_method(settings.method).network:
        return facts
    try:
        entry = find_weights(settings.method, settings.network.weights)
    except ModelError:
        return [*facts, Fact("weights", f"none; {settings.fallback} would be used", None)]
    outside = [entry.range.outside(sampling) if entry.range else [] for sampling in engine.samplings]
    unlike = [reasons for reasons in outside if reasons]
    text = f"{entry.name}; "
    if unlike:
        text += f"{len(unlike)} of {len(outside)} slices are not like the training: {'; '.join(unlike[0])}"
    else:
        text += "the slices are within the range of the training" if entry.range else "the training is not recorded"
    if entry.weighing:
        refused = (why for sampling in engine.samplings if (why := entry.why_not_on(sampling.pattern)))
        text += next(
            ("; " + why for why in refused), f"; their images are weighed against {entry.reference} all the same"
        )
    return [*facts, Fact("weights", text, {"name": entry.name, "outside": outside})]


# --- words ------------------------------------------------------------------------------------------------------------


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _some_lines(rows: list[str]) -> str:
    more = [f"and {len(rows) - _MOST_LISTED} more"] if len(rows) > _MOST_LISTED else []
    return "\n".join(rows[:_MOST_LISTED] + more)


def _span(values: NDArray[np.intp]) -> str:
    least, most = int(values.min()), int(values.max())
    return str(least) if least == most else f"{least} to {most}"
