"""Time and order of every readout of a simulated scan, and the state of the heart at that time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recon_core.gating.beats import cycle_position
from recon_core.simulate.ecg import cardiac_position, rr_intervals, seen_triggers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.simulation.plan import ScanPlan

NOISE_INTERVAL = 0.005  # s between two noise readouts
_ARRHYTHMIA = 0.25  # share of the mean RR by which a beat deviates that the sequence measures again
_MOST_REMEASURED = 16  # beats
_CYCLE_STEPS = 160  # moments of the cycle that a retrospectively gated scan is drawn at

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


def timeline(plan: ScanPlan, mask: NDArray[np.bool_]) -> tuple[NDArray[np.void], NDArray[np.float64]]:
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
    backwards = plan.alternating_order & (order["frame"] % 2 == 1)
    line = np.where(backwards, -order["line"], order["line"])
    order = order[np.lexsort((*slowest, line, order["slice"])[::-1])]  # lexsort sorts by its last key first
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
    rr, r_waves, before = _beats(plan, beats + 4)
    if plan.time_axis == "repetition":
        order["time"] = np.arange(len(order)) * spacing
    elif plan.segments:
        # Every block has its own beat, in which each frame has its slot.
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


def gated_timeline(
    plan: ScanPlan, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.void], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The readouts of a retrospectively gated scan, R waves and triggers in s, and ``(state, 3)`` of the object.

    The sequence runs without a break and knows the triggers only: every pass is one segment, and a pass that begins
    after a trigger belongs to the next beat. A state is slice, cycle fraction and respiration.
    """
    spacing, mean_rr = plan.repetition_time / 1000, 60.0 / plan.heart_rate
    rows = [np.flatnonzero(mask[number, 0]) for number in range(plan.slices)]
    segments = [-(-len(lines) // plan.segments) if plan.segments else 1 for lines in rows]
    _, r_waves, before = _beats(plan, 3 * plan.averages * sum(segments) + _MOST_REMEASURED + 8)
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


def motion(
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


def _beats(plan: ScanPlan, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """RR intervals and R waves in s, those of the noise in front and `count` more; how many are in front of time 0."""
    before = math.ceil((plan.noise_readouts * NOISE_INTERVAL + 2.0) / (0.4 * 60.0 / plan.heart_rate))
    rr = rr_intervals(
        before + count,
        heart_rate=plan.heart_rate,
        variability=plan.rr_variability,
        ectopic=before + 2 if plan.ectopic_beat else None,
        seed=plan.seed,
    )
    r_waves = np.concatenate([[0.0], np.cumsum(rr)])
    return rr, r_waves - r_waves[before], before
