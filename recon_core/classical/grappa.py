"""GRAPPA and TGRAPPA: missing lines as a weighted sum of their measured neighbours, the weights learned from the data.

Griswold et al., Magn Reson Med 2002, doi:10.1002/mrm.10171; calibrated on the average over time (TGRAPPA) in Breuer et
al., Magn Reson Med 2005, doi:10.1002/mrm.20430.

The gap between two regular lines is filled in one product: all R - 1 missing lines of a gap have the same sources. A
kernel along kx is a factor per pixel along x, so that the gaps are filled in hybrid space ``(ky, x)``, where the data
already are and where the product is as many times smaller as the kernel is wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from recon_core.errors import DataError
from recon_core.physics.fourier import fft
from recon_core.physics.sense import SenseOperator
from recon_core.words import listed

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import GrappaOptions

# Half the width of the kernel along kx: five samples.
_REACH = 2
# Tikhonov weight, relative to ||A^H A||_F / columns.
_RELATIVE_WEIGHT = 0.01
# A block shorter than this many kernels gives too few equations for the larger kernel: it then does worse than the
# smaller one although it could be calibrated.
_KERNELS_PER_BLOCK = 3
# Equations in work at a time, and sources of missing lines: on the CPU they should stay near the cache.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
_ELSEWHERE = "choose cg_sense or low_rank_sparse, which take any pattern"


@dataclass(frozen=True)
class LineGrid:
    """Where the regular lines of one frame are."""

    step: int
    """Distance R between regular lines; 1 where no line is missing between measured ones."""
    first: int
    last: int
    """`first`, `last`: The outermost regular lines."""


def line_grid(measured: torch.Tensor) -> LineGrid | None:
    """Find every R-th line and one block of adjacent lines (ACS) in a sampling pattern.

    Parameters
    ----------
    measured
        ``(ky,)`` bool, True where a line was measured.

    Returns
    -------
    LineGrid or None
        None where nothing was measured.

    Raises
    ------
    DataError
        If the pattern is not of this kind.
    """
    lines: list[int] = torch.nonzero(measured).flatten().tolist()
    if not lines:
        return None
    # Between two lines that both belong to the grid nothing else is left out than its R - 1 lines.
    steps = [after - before for before, after in pairwise(lines)]
    step = max(steps, default=1)
    if step == 1:
        return LineGrid(1, lines[0], lines[-1])
    offset = lines[steps.index(step)] % step
    regular = [line for line in lines if line % step == offset]
    extra = [line for line in lines if line % step != offset]
    complete = len(regular) == (regular[-1] - regular[0]) // step + 1
    # A single line off the grid is no block: where a regular line is lost, the grid seems coarser than it is.
    around = slice(max(extra[0] - 1, 0), extra[-1] + 2) if extra else slice(0)
    one_block = not extra or (bool(measured[extra[0] : extra[-1] + 1].all()) and int(measured[around].sum()) > 1)
    # Two lines far apart in a random pattern are no grid, nor is one line next to a block.
    if not (complete and one_block and len(regular) > 2):
        raise DataError(
            f"grappa needs every R-th line and at most one block of reference lines, but the {len(lines)} lines of a "
            f"frame are {listed(lines)}; {_ELSEWHERE}"
        )
    return LineGrid(step, regular[0], regular[-1])


def grappa_weights(block: torch.Tensor, step: int, *, lines_each_side: int = 2) -> torch.Tensor:
    """Learn how the lines of a gap follow from the regular lines around it.

    Solves W = (A^H A + mu)^-1 A^H B with mu = 0.01 ||A^H A||_F / columns, over all positions with sources within the
    block: sources are all coils, `lines_each_side` regular lines on each side of the gap, and five samples along kx.

    Parameters
    ----------
    block
        ``(coil, ky, kx)`` complex64 k-space, adjacent lines without a gap.
    step
        Distance R of the regular lines.
    lines_each_side
        Regular lines on each side of a gap that act as sources.

    Returns
    -------
    torch.Tensor
        ``(kx offset -2..2, source line, source coil, missing line, target coil)`` complex64; zero where the block is.

    Raises
    ------
    DataError
        If the block is too small for one position, or not finite.
    """
    n_coils, n_lines, n_x = block.shape
    n_sources = 2 * lines_each_side
    n_windows, width = n_lines - (n_sources - 1) * step, n_x - 2 * _REACH
    if n_windows < 1 or width < 1:
        raise DataError(
            f"grappa with R = {step} needs at least {(n_sources - 1) * step + 1} adjacent reference lines of at least "
            f"{2 * _REACH + 1} samples, got {n_lines} lines of {n_x}; {_ELSEWHERE}"
        )
    if not bool(block.isfinite().all()):
        raise DataError("the reference lines for grappa hold values that are not finite")
    peak = block.abs().amax()
    scaled = (block / torch.where(peak > 0, peak, 1)).movedim(0, -1).contiguous()  # (ky, kx, coil)
    n_taps = 2 * _REACH + 1
    n_columns = n_taps * n_sources * n_coils
    normal = scaled.new_zeros((n_columns, n_columns))
    right_side = scaled.new_zeros((n_columns, (step - 1) * n_coils))
    gap = (lines_each_side - 1) * step + 1
    rows = max(1, _chunk_bytes(block.device) // (width * n_columns * block.element_size()))
    for first in range(0, n_windows, rows):
        n_rows = min(rows, n_windows - first)
        columns = [
            scaled[first + source * step : first + source * step + n_rows, tap : tap + width]
            for tap in range(n_taps)
            for source in range(n_sources)
        ]
        equations = torch.cat(columns, -1).flatten(0, 1)
        targets = [
            scaled[first + gap + missing : first + gap + missing + n_rows, _REACH : _REACH + width]
            for missing in range(step - 1)
        ]
        normal += equations.mH @ equations
        right_side += equations.mH @ torch.cat(targets, -1).flatten(0, 1)
    # Solved in double precision: the condition of the normal equations is the square of that of the equations.
    normal, right_side = normal.to(torch.complex128), right_side.to(torch.complex128)
    weight = _RELATIVE_WEIGHT * torch.linalg.matrix_norm(normal) / n_columns
    normal.diagonal().add_(torch.where(weight > 0, weight, 1))
    weights = torch.cholesky_solve(right_side, torch.linalg.cholesky(normal))
    return weights.to(block.dtype).reshape(n_taps, n_sources, n_coils, step - 1, n_coils)


def hybrid_weights(weights: torch.Tensor, n_x: int) -> torch.Tensor:
    """Turn a kernel along kx into a factor for every x.

    Parameters
    ----------
    weights
        As `grappa_weights` gives them.
    n_x
        Pixels along the readout.

    Returns
    -------
    torch.Tensor
        ``(x, source line, source coil, missing line, target coil)`` complex64; the product with the sources is the
        periodic convolution along kx.
    """
    taps = torch.arange(n_x // 2 - _REACH, n_x // 2 + _REACH + 1)
    phase = _fourier_rows(n_x, taps) * n_x**0.5
    return torch.einsum("tx,t...->x...", phase.to(weights), weights)


def fill_gaps(hybrid: torch.Tensor, mask: torch.Tensor, grids: list[LineGrid], weights: torch.Tensor) -> torch.Tensor:
    """Complete the lines of frames that share weights.

    Parameters
    ----------
    hybrid
        ``(frame, coil, ky, x)`` complex64 measured lines.
    mask
        ``(frame, ky)`` bool.
    grids
        The regular lines of each frame, all of one step.
    weights
        As `grappa_weights` gives them.

    Returns
    -------
    torch.Tensor
        ``(frame, coil, ky, x)`` complex64: measured lines as they are, gaps filled, zero in lines that partial Fourier
        sampling left out. Sources beyond the border of k-space are zero.
    """
    n_frames, n_coils, n_lines, n_x = hybrid.shape
    step, n_sources = grids[0].step, weights.shape[1]
    each_side = n_sources // 2
    device = hybrid.device
    first = torch.tensor([grid.first for grid in grids], device=device)[:, None]
    last = torch.tensor([grid.last for grid in grids], device=device)[:, None]
    # Slot j of a frame is its line first + R j, from the sources of the gap before the first one to those behind the
    # last. The one line of zeros behind the last line of k-space stands for all that is not there.
    slots = torch.arange(-each_side, -(-n_lines // step) + each_side, device=device)
    source = first + step * slots
    source = torch.where((source < first) | (source > last), n_lines, source)
    missing = first[..., None] + step * slots[each_side - 1 : -each_side, None] + torch.arange(1, step, device=device)
    # Beyond the outermost regular line only a gap that reaches the border of k-space is filled: not so partial Fourier.
    lowest = torch.where(first < step, 0, first)[..., None]
    highest = torch.where(last + step >= n_lines, n_lines - 1, last)[..., None]
    missing = torch.where((missing < lowest) | (missing > highest), n_lines, missing).flatten(1)

    matrix = hybrid_weights(weights, n_x).flatten(3).flatten(1, 2)  # (x, source line and coil, missing line and coil)
    edges, wrap = _wrapped(weights, n_x)
    to_edges = _fourier_rows(n_x, edges).to(hybrid)
    completed = torch.empty_like(hybrid)
    frame_bytes = slots.numel() * n_sources * n_coils * n_x * hybrid.element_size()
    chunk = max(1, _chunk_bytes(device) // frame_bytes)
    for start in range(0, n_frames, chunk):
        part = slice(start, start + chunk)
        measured = torch.where(mask[part, None, :, None], hybrid[part], 0)
        frame = torch.arange(len(measured), device=device)[:, None]
        lines = torch.nn.functional.pad(measured.permute(3, 0, 2, 1), (0, 0, 0, 1))  # (x, frame, ky, coil)
        windows = _windows(lines[:, frame, source[part]], n_sources)
        # What the periodic convolution took from the other end of the line is taken back.
        wrapped = (torch.einsum("ex,xns->nes", to_edges, windows).flatten(1) @ wrap).view(
            windows.shape[1], len(edges), -1
        )
        filled = windows @ matrix - torch.einsum("ex,net->xnt", to_edges.conj(), wrapped)
        lines[:, frame, missing[part]] = filled.reshape(n_x, len(measured), -1, n_coils)
        completed[part] = torch.where(mask[part, None, :, None], measured, lines[:, :, :n_lines].permute(1, 3, 2, 0))
    return completed


def grappa(
    hybrid: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Complete all lines of a slice.

    Parameters
    ----------
    hybrid
        ``(frame, coil, ky, x)`` complex64 measured lines, transformed to image space along the readout.
    mask
        ``(frame, ky)`` bool: in every frame each R-th line, from any first line, and at most one block more.
    reference
        ``(coil, ky, x)`` complex64 lines to learn from, transformed along the readout: a separate reference scan, or
        the average of the frames. The longest run of adjacent lines is used.
    measured
        ``(ky,)`` bool, True where `reference` holds a line.

    Returns
    -------
    tuple
        ``(frame, coil, ky, x)`` complex64 complete lines, zero in frames without data, and notes on what had to be done
        differently.

    Raises
    ------
    DataError
        If the pattern has no grid, or too few adjacent reference lines.
    """
    patterns = [tuple(row) for row in mask.tolist()]
    grids = {pattern: line_grid(torch.tensor(pattern)) for pattern in set(patterns)}
    grid_of = [grids[pattern] for pattern in patterns]
    notes: list[str] = []
    empty = [frame for frame, grid in enumerate(grid_of) if grid is None]
    if empty:
        notes.append(f"grappa: no line was measured in frames {listed(empty)}, which stay empty")
    completed = torch.where(mask[:, None, :, None], hybrid, 0)
    steps = sorted({grid.step for grid in grid_of if grid is not None and grid.step > 1})
    if not steps:
        return completed, tuple(notes)

    run = longest_run(measured)
    block = fft(reference[:, run], (-1,))
    n_block = run.stop - run.start
    for step in steps:
        lines_each_side = 2 if n_block >= _KERNELS_PER_BLOCK * (3 * step + 1) else 1
        if lines_each_side == 1:
            notes.append(f"grappa: kernel of 2 x 5 instead of 4 x 5, as there are {n_block} reference lines")
        weights = grappa_weights(block, step, lines_each_side=lines_each_side)
        of_step = {frame: grid for frame, grid in enumerate(grid_of) if grid is not None and grid.step == step}
        # A list of frames makes a copy, which the usual case, all of them, does without.
        frames = slice(None) if len(of_step) == len(mask) else list(of_step)
        completed[frames] = fill_gaps(hybrid[frames], mask[frames], list(of_step.values()), weights)
    return completed, tuple(notes)


def longest_run(measured: torch.Tensor) -> slice:
    """Find the longest run of adjacent measured lines in ``(ky,)`` bool; the first of equal ones, empty if none."""
    best, start = slice(0, 0), 0
    for line, yes in enumerate([*measured.tolist(), False]):
        if not yes:
            best = max(best, slice(start, line), key=lambda run: run.stop - run.start)
            start = line + 1
    return best


class Grappa:
    """GRAPPA with weights from a separate reference, from the average of the frames (TGRAPPA), or of each frame.

    Parameters
    ----------
    options
        Where the weights are learned.
    implementation
        Kernels that combine the coils: ``torch``, ``cupy`` or ``auto``.

    Notes
    -----
    Griswold et al., doi:10.1002/mrm.10171; Breuer et al., doi:10.1002/mrm.20430.
    """

    def __init__(self, options: GrappaOptions, implementation: str = "auto") -> None:
        self._each_frame = options.calibration == "frame"
        self._implementation = implementation

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice; its maps combine the coils.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data; zero in frames without a measured line.

        Raises
        ------
        DataError
            As `grappa`.
        """
        if self._each_frame:
            completed, notes = _grappa_of_each_frame(data.hybrid, data.mask)
        else:
            completed, notes = grappa(data.hybrid, data.mask, data.reference, data.measured)
        data.notes.extend(notes)
        everything = torch.ones_like(data.mask)
        return SenseOperator(data.maps, everything, implementation=self._implementation).adjoint(completed)


def _grappa_of_each_frame(hybrid: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """As `grappa`, every frame learning from its own lines."""
    completed = torch.zeros_like(hybrid)
    empty = torch.nonzero(~mask.any(-1)).flatten().tolist()
    notes = [f"grappa: no line was measured in frames {listed(empty)}, which stay empty"] if empty else []
    for frame in torch.nonzero(mask.any(-1)).flatten().tolist():
        this = slice(frame, frame + 1)
        completed[this], more = grappa(hybrid[this], mask[this], hybrid[frame], mask[frame])
        notes.extend(more)
    return completed, tuple(dict.fromkeys(notes))


def _windows(lines: torch.Tensor, n_sources: int) -> torch.Tensor:
    """Gather the sources of every gap from ``(x, frame, slot, coil)``: ``(x, frame and gap, source line and coil)``."""
    return lines.unfold(2, n_sources, 1).movedim(-1, -2).flatten(3).flatten(1, 2)


def _wrapped(weights: torch.Tensor, n_x: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find what a periodic convolution along kx lets through from the other end.

    Gives the samples ``(edge,)`` at both ends, and the matrix ``(edge, source line, source coil) x (edge, missing line,
    target coil)`` from their sources to their targets.
    """
    edges = [*range(_REACH), *range(n_x - _REACH, n_x)]
    wrap = weights.new_zeros((len(edges), *weights.shape[1:3], len(edges), *weights.shape[3:]))
    for i, source in enumerate(edges):
        for j, target in enumerate(edges):
            for turn in (-n_x, n_x):
                if abs(source - target + turn) <= _REACH:
                    wrap[i, :, :, j] = weights[source - target + turn + _REACH]
    return torch.tensor(edges), wrap.flatten(3).flatten(0, 2)


def _fourier_rows(n_x: int, samples: torch.Tensor) -> torch.Tensor:
    """Make rows ``(sample, x)`` complex128 of the matrix that transforms from x to kx."""
    position = torch.arange(n_x, dtype=torch.float64) - n_x // 2
    turns = -(samples[:, None].to(torch.float64) - n_x // 2) * position / n_x
    return torch.polar(torch.full_like(turns, n_x**-0.5), 2 * torch.pi * turns)


def _chunk_bytes(device: torch.device) -> int:
    """Bytes to work on at a time."""
    return _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])
