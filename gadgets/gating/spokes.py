"""Retrospective gating of spokes: every spoke belongs to the frame of the cardiac cycle that is nearest to its moment.

Unlike the lines of a grid, no two spokes need to be the same, so that nothing is interpolated in time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gadgets.gating.gate import USUAL_FRAMES, Gating, beat_in_words, beats_in_words, beats_of
from recon_core.gating.beats import REJECTED
from recon_core.gating.self_gating import find_triggers_of_spokes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate
    from recon_core.gating.beats import Rhythm

logger = logging.getLogger("cinestream")

_FEWEST_SHARE = 0.4  # of the spokes that a frame of a beat has on average: a beat with less in one is not whole


@dataclass(frozen=True)
class GatedSpokes:
    """The frames that the spokes of a slice belong to."""

    frame: NDArray[np.intp]
    """``(spoke,)`` number of the frame of each; -1 where its beat was rejected."""
    headers: NDArray[np.void]
    """``(frame,)`` of the acquisition header, with the phase and the time since the R wave that the frame shows."""
    notes: tuple[str, ...]
    """What a reader of the images must know."""
    gating: Gating
    """How they were made."""


def centre_of_spokes(
    data: NDArray[np.complex64], positions: NDArray[np.float32]
) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """The samples ``(spoke, coil)`` nearest to the k-space centre, and the angles ``(spoke,)`` in radians.

    Parameters
    ----------
    data
        ``(spoke, coil, sample)`` complex64.
    positions
        ``(spoke, sample, dimension)``, x and y first, in any unit.
    """
    spoke = np.arange(len(data))
    center = np.linalg.norm(positions[..., :2], axis=-1).argmin(axis=1)
    last = positions[:, -1, :2] - positions[spoke, center, :2]
    return data[spoke, :, center], np.arctan2(last[:, 1], last[:, 0]).astype(np.float64)


def gate_spokes(
    gate: Gate,
    name: str,
    headers: NDArray[np.void],
    centres: NDArray[np.complex64],
    angles: NDArray[np.float64],
    promised: int,
) -> tuple[GatedSpokes, ...]:
    """Find the frames of a slice, and which one every spoke belongs to.

    Parameters
    ----------
    gate
        That of the scan.
    name
        Of the slice, in words.
    headers
        ``(spoke,)`` acquisition headers, in order of acquisition.
    centres, angles
        As `centre_of_spokes` gives them.
    promised
        Frames that the header promises of a cycle; 0 where it says nothing.

    Returns
    -------
    tuple of GatedSpokes
        One; or one for every beat, where that was asked for.

    Raises
    ------
    DataError
        If the slice cannot be gated.
    """

    def triggers(time: NDArray[np.float64]) -> NDArray[np.float64]:
        return find_triggers_of_spokes(centres, angles, time)

    rhythm, source = gate.find_rhythm(name, headers, triggers)
    frames = gate.known_frames(promised) or USUAL_FRAMES
    position = gate.cycle_position(rhythm)
    frame = np.rint(position * frames).astype(np.intp) % frames
    if gate.wants_beats:
        beats = () if gate.repeats else tuple(_beats(gate, name, headers, position, rhythm, source, frames))
        if beats:
            return beats
        gate.report_no_beats(name, "no beat has spokes enough in all frames; gated_frames makes fewer")
    rejected = rhythm.grade[rhythm.beat] == REJECTED
    thin = []
    empty = np.setdiff1d(frame, frame[~rejected])
    if len(empty):
        rejected &= ~np.isin(frame, empty)
        thin = [f"{len(empty)} frames have spokes of rejected beats only; they were used"]
    frame[rejected] = -1
    used = np.bincount(rhythm.beat[~rejected], minlength=len(rhythm.rr)) > 0
    words = beats_in_words(rhythm, used, frames, source)
    logger.info("%s: %s", name, words)
    nowhere = np.zeros(len(headers), np.intp)  # every spoke crosses the centre
    mean = GatedSpokes(
        frame,
        gate.headers_of(headers, nowhere, position, rhythm, frames, 0),
        (words, *gate.report_doubts(name, rhythm, thin)),
        Gating(source, rhythm.typical, beats_of(rhythm, used)),
    )
    return (mean,)


def _beats(
    gate: Gate,
    name: str,
    headers: NDArray[np.void],
    position: NDArray[np.float64],
    rhythm: Rhythm,
    source: str,
    frames: int,
) -> Iterator[GatedSpokes]:
    """The frames of every beat that is accepted and was measured as a whole."""
    moment = np.rint(position * frames).astype(np.intp)
    # the last spokes of a beat are nearest to the R wave of the next one
    beat, frame = rhythm.beat + moment // frames, moment % frames
    good = rhythm.grade[rhythm.beat] != REJECTED
    for number in np.flatnonzero(rhythm.grade != REJECTED).tolist():
        own = good & (beat == number)
        counts = np.bincount(frame[own], minlength=frames)
        if counts.min() < max(1.0, _FEWEST_SHARE * counts.mean()):
            continue
        note = beat_in_words(rhythm, number, frames, source)
        logger.info("%s: %s", name, note)
        one = replace(rhythm, beat=rhythm.beat[own], since=rhythm.since[own])
        made = gate.headers_of(headers[own], np.zeros(int(own.sum()), np.intp), position[own], one, frames, 0)
        made["idx"]["repetition"] = number
        gating = Gating(source, float(rhythm.rr[number]), beat=number)
        yield GatedSpokes(np.where(own, frame, -1), made, (note,), gating)
