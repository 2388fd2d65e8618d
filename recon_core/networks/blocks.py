"""Building blocks that several networks share.

Feature maps are real, ``(batch, frame, channel, row, column)``; which image axis is the row, the network decides. In
memory, frames come first and channels last: a frame is one piece, a shift in time is a shift in memory, and
convolutions like it (measured on a CPU: 1.4 times faster than rows and columns last). Other orders work and are copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Direction = Literal["forward", "backward", "both"]

# Feature maps that are in work at a time. On the CPU they should stay in the cache, and their memory be reused
# rather than fetched again each time; on a GPU they should fill it.
PORTION_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


def to_channels(image: torch.Tensor) -> torch.Tensor:
    """Complex ``(..., row, column)`` to real and imaginary part ``(..., 2, row, column)``: a view, channels last."""
    return torch.view_as_real(image.resolve_conj()).movedim(-1, -3)


def to_complex(channels: torch.Tensor) -> torch.Tensor:
    """Real and imaginary part ``(..., 2, row, column)``, of any precision, to complex ``(..., row, column)``."""
    return torch.view_as_complex(channels.float().movedim(-3, -1).contiguous())


# An axis of one entry is added and removed by indexing: reshaping gives it another stride, and convolutions no longer
# recognise the order in memory.
def merge_frames(features: torch.Tensor) -> torch.Tensor:
    """``(batch, frame, ...)`` to ``(frame * batch, ...)``, as 2-D layers take it."""
    return features[0] if len(features) == 1 else features.transpose(0, 1).flatten(0, 1)


def split_frames(images: torch.Tensor, n_frames: int) -> torch.Tensor:
    """``(frame * batch, ...)`` to ``(batch, frame, ...)``."""
    return images[None] if len(images) == n_frames else images.reshape(n_frames, -1, *images.shape[1:]).transpose(0, 1)


def frame_by_frame(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Apply a 2-D layer to every frame of ``(batch, frame, channel, row, column)``."""
    return split_frames(layer(merge_frames(features)), features.shape[1])


def portions(*features: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Split features ``(batch, frame, ...)`` into pieces ``(frame * batch, ...)`` that should be processed together.

    With autograd it is one piece: everything is kept anyway, and few operations should change their operand.
    """
    merged = [merge_frames(part) for part in features]
    n_batch, n_frames = features[0].shape[:2]
    frame_bytes = sum(part[0].numel() * part.element_size() for part in merged) * n_batch
    budget = PORTION_BYTES.get(features[0].device.type, PORTION_BYTES["cuda"])
    size = n_frames if torch.is_grad_enabled() else max(1, budget // max(1, frame_bytes))
    return list(zip(*(torch.split(part, size * n_batch) for part in merged), strict=True))


def around(start: int, length: int, total: int) -> list[tuple[slice, slice]]:
    """Position of a piece in a cycle, and its part of the piece: one part, or two around the end."""
    start %= total
    fitting = min(length, total - start)
    places = [(slice(start, start + fitting), slice(fitting))]
    return [*places, (slice(length - fitting), slice(fitting, None))] if fitting < length else places


def pad_to_multiple(images: torch.Tensor, multiple: int) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Surround images ``(..., row, column, 2)`` with zeros, so that rows and columns are multiples of a number.

    Returns
    -------
    torch.Tensor
        ``(..., row, column, 2)``; of an odd number of zeros the larger half stands behind.
    tuple
        Rows and columns where the images are.
    """
    rows, columns = images.shape[-3:-1]
    missing_rows, missing_columns = -rows % multiple, -columns % multiple
    top, left = missing_rows // 2, missing_columns // 2
    inside = slice(top, top + rows), slice(left, left + columns)
    if not (missing_rows or missing_columns):
        return images, inside
    return functional.pad(images, (0, 0, left, missing_columns - left, top, missing_rows - top)), inside


def convolve(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    """Convolve ``(image, channel, row, column)`` with a 3 x 3 kernel; the size stays."""
    return functional.conv2d(features, weight, bias, padding=dilation, dilation=dilation)


class ConvolutionalRecurrence(nn.Module):
    """Convolutional recurrent unit: every frame from its input, its state in the previous cascade and its neighbour.

    ``h_t = ReLU(i2h(input_t) + ih2ih(state_t) + h2h(h_neighbour))``, with 3 x 3 convolutions; the neighbour is the
    frame before (``forward``), after (``backward``), or both, with the same weights, and the two results are summed.
    The neighbour of the first frame visited is zero, and so is the state before the first cascade.

    Parameters
    ----------
    in_channels
        Channels of the input.
    channels
        Channels of state and result.
    dilation
        Of all three convolutions.
    direction
        Where the recurrence runs.

    Notes
    -----
    Qin et al., IEEE Trans Med Imaging 2019, doi:10.1109/TMI.2018.2863670. Only the hidden path needs one frame after
    the other. Input and state are convolved for many frames at once, by one convolution of both; a convolution of zeros
    is its bias. Both directions run as a batch of two.
    """

    def __init__(self, in_channels: int, channels: int, dilation: int = 1, direction: Direction = "both") -> None:
        super().__init__()
        self._dilation = dilation
        self._direction = direction
        self.i2h = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
        self.h2h = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.ih2ih = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, features: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Run over the frames.

        Parameters
        ----------
        features
            ``(batch, frame, in_channels, row, column)``.
        state
            ``(batch, frame, channels, row, column)`` of the previous cascade; None before the first.

        Returns
        -------
        torch.Tensor
            ``(batch, frame, channels, row, column)``.
        """
        inputs = self._inputs(features, state)
        if self._direction == "both":
            frames = self._both_directions(tuple(inputs))
        else:
            frames = self._recur(inputs)
            if self._direction == "backward":
                frames.reverse()
        return split_frames(torch.cat(frames), len(frames))

    def _inputs(self, features: torch.Tensor, state: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """All that does not depend on the neighbour, frame by frame, with the bias of the hidden path."""
        step = -1 if self._direction == "backward" else 1
        bias = self.i2h.bias + self.ih2ih.bias + self.h2h.bias  # type: ignore[operator]
        weight, sources = self.i2h.weight, [features]
        if state is not None:
            weight, sources = torch.cat((weight, self.ih2ih.weight), 1), [features, state]
        for parts in portions(*sources)[::step]:
            images = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            yield from torch.split(convolve(images, weight, bias, self._dilation), len(features))[::step]

    def _recur(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The hidden path over ``(image, channel, row, column)`` per frame, in the order given."""
        hidden: list[torch.Tensor] = []
        for frame in inputs:
            if hidden:
                hidden.append(convolve(hidden[-1], self.h2h.weight, None, self._dilation).add_(frame).relu_())
            else:
                hidden.append(functional.relu(frame))
        return hidden

    def _both_directions(self, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """The sum of the hidden paths in both directions."""
        pairs = [pair.chunk(2) for pair in self._recur(map(torch.cat, zip(inputs, inputs[::-1], strict=True)))]
        return [there + back for (there, _), (_, back) in zip(pairs, pairs[::-1], strict=True)]


class SpaceTimeConvolution(nn.Module):
    """Conv(2+1)D: a 2-D convolution of every frame, ReLU, and a convolution of three frames, the first after the last.

    Parameters
    ----------
    conv2d
        The layer for the frames, with or without a change of their size.
    channels
        Channels that it gives, and that are given back.

    Notes
    -----
    Tran et al., CVPR 2018, doi:10.1109/CVPR.2018.00675. The convolution over frames is a product of matrices for each
    of its three taps, on the features where they are.
    """

    def __init__(self, conv2d: nn.Conv2d | nn.ConvTranspose2d, channels: int) -> None:
        super().__init__()
        self.conv2d = conv2d
        self.conv1d = nn.Conv1d(channels, channels, 3)

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        """Convolve features ``(batch, frame, channel, row, column)``, the channels of all that are given together."""
        n_batch, n_frames = features[0].shape[:2]
        result, done = torch.empty(0), 0
        for parts in portions(*features):
            images = self.conv2d(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
            images = functional.relu_(images).permute(0, 2, 3, 1)
            if not done:
                bias = self.conv1d.bias.to(images.dtype)  # type: ignore[union-attr]
                result = bias.expand(n_batch * n_frames, *images.shape[1:]).contiguous()
            self._spread(images.reshape(-1, images.shape[-1]), done, result, n_frames)
            done += len(images) // n_batch
        return split_frames(result.permute(0, 3, 1, 2), n_frames)

    def _spread(self, rows: torch.Tensor, first: int, result: torch.Tensor, n_frames: int) -> None:
        """Add what frames, of which `first` is the first, contribute to themselves and to their neighbours."""
        total = result.view(-1, result.shape[-1])
        per_frame = len(total) // n_frames
        for shift, weight in zip((1, 0, -1), self.conv1d.weight.to(rows.dtype).unbind(2), strict=True):
            for place, part in around((first + shift) * per_frame, len(rows), len(total)):
                total[place].addmm_(rows[part], weight.T)
