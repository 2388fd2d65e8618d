"""PromptMR: an unrolled network over adjacent frames that learns its coil maps and fills in the coils' k-space."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import nn
from torch.nn import functional

from recon_core.coils.calibration import time_average
from recon_core.errors import DataError, ModelError
from recon_core.networks.base import Network
from recon_core.physics.fourier import fft

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recon_core.data import HybridSlice

Widths = tuple[int, int, int]

# What is in work together, as bytes of feature maps of full size and of coil images. On the CPU small portions stay
# nearer to the cache (measured: 10 % faster per image, at a quarter of the memory); the GPU should have enough to do.
_PORTION_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
# Between the largest and the smallest size of a U-net.
_FACTOR = 8
# Central lines in the training data; farther out, the average over time holds the motion.
_REFERENCE_LINES = 24
_SLOPE = ".body.1.weight"
_FIRST_BLOCK = ".enc_level1.encoder.0"


@dataclass(frozen=True, kw_only=True)
class PromptMRConfig:
    """The architecture; defaults are those published for CMRxRecon 2023.

    Raises
    ------
    ModelError
        If the number of adjacent frames is even, or there is no cascade.
    """

    cascades: int = 12
    """Passes of network and data consistency; 12, or 16 in the larger published model."""
    adjacent_frames: int = 5
    """Frames of the window, of which the central one is reconstructed; odd."""
    features: int = 48
    """Feature maps of the cascades' U-nets at full size."""
    feature_dim: Widths = (72, 96, 120)
    """Their feature maps at a half, a quarter and an eighth of the size."""
    prompt_dim: Widths = (24, 48, 72)
    """Their prompt maps where the size is a half, a quarter and an eighth."""
    sens_features: int = 24
    sens_feature_dim: Widths = (36, 48, 60)
    sens_prompt_dim: Widths = (12, 24, 36)
    """`sens_features`, `sens_feature_dim`, `sens_prompt_dim`: The same of the U-net that makes the coil maps."""
    prompt_length: Widths = (5, 5, 5)
    """Components that a prompt is mixed from, by level."""
    prompt_size: Widths = (64, 32, 16)
    """Side of the components, by level; they are resized to the image."""
    encoder_blocks: Widths = (2, 3, 3)
    decoder_blocks: Widths = (2, 2, 3)
    skip_blocks: Widths = (1, 1, 1)
    """`encoder_blocks`, `decoder_blocks`, `skip_blocks`: Blocks of an encoder, of a decoder and between the two, by
    level."""
    bottleneck_blocks: int = 3
    """Blocks at the smallest size."""
    channel_attention: bool = True
    """Whether the blocks weight their channels."""
    learnable_prompt: bool = False
    """Whether training changes the components of the prompts; as published they stay as they were drawn."""
    learned_maps: bool = True
    """Make the coil maps with a network, as published. False uses those of the slice, and the image is the combination
    of the coils with them: a short training need not learn coil maps first."""
    keeps_mean: bool = True
    """The mean of an image, taken out before a U-net of the cascades, is put back into the change that this gives, as
    published; the U-net cannot know it, and what it leaves of it in the last cascade stays. False leaves it out."""

    def __post_init__(self) -> None:
        """Refuse a window that has no centre, and no cascades."""
        if self.cascades < 1:
            raise ModelError(f"there must be a cascade; got {self.cascades}")
        if self.adjacent_frames < 1 or self.adjacent_frames % 2 == 0:
            raise ModelError(f"adjacent_frames must be odd, so that there is a centre; got {self.adjacent_frames}")


def central_lines(measured: torch.Tensor) -> torch.Tensor:
    """Count the lines of the fully sampled centre.

    Parameters
    ----------
    measured
        ``(..., ky)`` bool.

    Returns
    -------
    torch.Tensor
        ``(...)`` int64: twice the shorter of the two runs of measured lines that start before and at ``N//2``, and at
        least one. The published count takes a half without any gap for an empty one, and gives one for a fully sampled
        axis; here that is all of it (all but a line of an odd number).
    """
    centre = measured.shape[-1] // 2
    before = measured[..., :centre].flip(-1).long().cumprod(-1).sum(-1)
    after = measured[..., centre:].long().cumprod(-1).sum(-1)
    return (2 * torch.minimum(before, after)).clamp(min=1)


class PromptMR(Network):
    """Unrolled network with prompts, on a window of adjacent frames; gives the root sum of squares of the coils.

    Xin et al., Fill the k-space and refine the image: prompting for dynamic and multi-contrast MRI reconstruction,
    2023, doi:10.48550/arXiv.2309.13839; the winner of CMRxRecon 2023. 81 528 317 parameters.

    One U-net makes coil maps S from the fully sampled centre of k-space, coil by coil. A cascade combines the coils,
    ``x = sum_c conj(S_c) F^-1 k_c``, lets its U-net D see all frames of the window at once, and moves the k-space of
    every coil: ``k <- k - w M (k - y) - F S D(x)``, with the mask M and the measured data y. The result is the root
    sum of squares of the coils of the centre frame; neither the learned maps nor others enter it.

    Parameters
    ----------
    config
        The architecture; None is the published one.

    Notes
    -----
    The same numbers as published with less work: maps once per frame instead of once per window; no transform along
    the readout, which the mask does not depend on; no shifts: their effect is a phase per line that goes into the data
    once; in the last cascade only the centre frame; 1 x 1 convolutions before the bilinear enlargement instead of
    after it, which is the same because each leaves alone what the other mixes.

    Different from the published network only where that fails or is wrong:

    - Masks may differ from frame to frame. The centre is then what all frames measured.
    - Where the frames have no centre in common, as with lines that shift from frame to frame, or a frame is empty, maps
      are made from the 24 central reference lines, as many as in training: of the average over time, or of the separate
      reference scan of the slice. Where these have no centre either, from the one central line.
    - A centre that fills half of the axis or all of it is counted (`central_lines`).
    - A coil without signal has maps of zero instead of NaN.

    One slope of PReLU is shared by all blocks, that of the map U-net included, but for the first block of each U-net,
    as published; it appears under all its names in ``named_parameters(remove_duplicate=False)``. U-nets see the
    transpose of our images, as they were trained: rows are the readout.
    """

    Config = PromptMRConfig
    config: PromptMRConfig
    scale: ClassVar[Literal["free", "peak"]] = "free"

    def __init__(self, config: PromptMRConfig | None = None) -> None:
        super().__init__()
        self.config = config or PromptMRConfig()
        shared_slope = nn.PReLU()
        self.sens_net = SensitivityNetwork(self.config, shared_slope) if self.config.learned_maps else None
        self.cascades = nn.ModuleList(Cascade(self.config, shared_slope) for _ in range(self.config.cascades))

    def check_checkpoint(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse a checkpoint with blocks that do not share their slope.

        Raises
        ------
        ModelError
            Saying so.
        """
        slopes = {float(tensor.detach()) for key, tensor in tensors.items() if _is_shared_slope(key)}
        if len(slopes) > 1:
            raise ModelError(
                f"the blocks of the published PromptMR share one PReLU slope; this checkpoint has {len(slopes)} "
                f"different ones ({min(slopes):.4g} to {max(slopes):.4g}) and belongs to another variant"
            )

    def forward(
        self, hybrid: torch.Tensor, mask: torch.Tensor, low_frequencies: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reconstruct the centre frame of windows.

        Parameters
        ----------
        hybrid
            ``(batch, frame, coil, ky, x)`` complex64 in any unit, with the number of frames of the window.
        mask
            ``(batch, frame, ky)`` bool; what it excludes is ignored.
        low_frequencies
            Central lines that maps are made from, a number or ``(batch,)``; None and 0 find them in the mask.

        Returns
        -------
        torch.Tensor
            ``(batch, y, x)`` float32, root sum of squares of the coils in the unit of the data.

        Raises
        ------
        DataError
            If axes disagree.
        ModelError
            If the maps are not learned; there are none then.
        """
        kspace = self._unroll(hybrid, mask, low_frequencies, only_centre=True)
        magnitude: torch.Tensor = _root_sum_of_squares(torch.fft.ifft(kspace[:, 0], norm="ortho")).mT
        return magnitude

    def complete(
        self, hybrid: torch.Tensor, mask: torch.Tensor, low_frequencies: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fill in the k-space of all frames of windows.

        Parameters
        ----------
        hybrid, mask, low_frequencies
            As for `forward`.

        Returns
        -------
        torch.Tensor
            ``(batch, frame, coil, ky, x)`` complex64.

        Raises
        ------
        DataError
            If axes disagree.
        ModelError
            If the maps are not learned.
        """
        return from_lines(self._unroll(hybrid, mask, low_frequencies, only_centre=False))

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes at its peak beyond weights and inputs; see `Network`."""
        n_frames, n_coils, n_y, n_x = shape
        size, device = (n_x, n_y), self._device()
        coil_image = 8 * n_x * n_y

        learning = 0
        if self.sens_net is not None:
            n_images = self.sens_net.portion(size, device)
            n_map_frames = min(n_frames, max(1, n_images // n_coils))
            n_images = min(n_images, n_map_frames * n_coils)
            coils = n_map_frames * n_coils * coil_image
            learning = max(5 * coils, 3 * coils + n_images * self.sens_net.norm_unet.working_bytes(size))

        n_windows = min(n_frames, self._window_portion((n_coils, *size), device))
        window = n_windows * self.config.adjacent_frames * n_coils * coil_image
        denoiser = cast("NormPromptUnet", self.cascades[0].model)
        improving = max(6 * window, 3 * window + n_windows * denoiser.working_bytes(size))

        # The data in the form of the cascades, the maps, and the result; and what a convolution of a few numbers, at
        # most this many, takes to unfold them.
        held = n_frames * (2 * n_coils + 1) * coil_image
        return held + max(learning, improving) + 4 * 25 * 20480

    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:  # noqa: ARG002 - plain torch, since the learned maps need gradients
        """Reconstruct one slice, every frame as the centre of its window in the cycle.

        Parameters
        ----------
        data
            The slice.
        implementation
            Makes no difference.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64, in the units of the data: the magnitude is the root sum of squares, the phase
            that of the same coil images combined with the maps of the slice, and zero where there is no such. With
            ``learned_maps=False``, this combination.
        """
        mask = data.mask.bool()
        measured = to_lines(data.hybrid, mask)
        first = measured
        if data.start is not None:
            first = to_lines(fft(data.maps * data.start[:, None], (-2,)), torch.ones_like(mask))
            first = torch.where(torch.fft.ifftshift(mask, -1)[:, None, None], measured, first)
        if self.sens_net is None:
            maps = data.maps.mT.expand(measured.shape)
        else:
            reference = (data.reference[None], data.measured[None])
            maps = self._coil_maps(self.sens_net, measured[None], mask[None], None, reference)[0]
        n_frames, n_coils, n_x, n_y = measured.shape
        centre = self.config.adjacent_frames // 2
        slots = torch.arange(-centre, centre + 1, device=mask.device)
        image = measured.new_empty((n_frames, n_x, n_y))
        weights = data.maps.mT.conj()
        portion = self._window_portion((n_coils, n_x, n_y), mask.device)
        for begin in range(0, n_frames, portion):
            frames = torch.arange(begin, min(begin + portion, n_frames), device=mask.device)
            window = (frames[:, None] + slots) % n_frames
            kspace = self._cascade(first[window], measured[window], mask[window], maps[window], only_centre=True)[:, 0]
            coils = torch.fft.ifft(kspace, norm="ortho")
            image[begin : begin + portion] = (
                (weights * coils).sum(-3) if self.sens_net is None else _combine(coils, weights)
            )
        return image.mT

    def _unroll(
        self, hybrid: torch.Tensor, mask: torch.Tensor, low_frequencies: int | torch.Tensor | None, *, only_centre: bool
    ) -> torch.Tensor:
        """From windows of data to their k-space, as `to_lines` has it."""
        n_frames = self.config.adjacent_frames
        if hybrid.ndim != 5 or hybrid.shape[1] != n_frames or mask.shape != (*hybrid.shape[:2], hybrid.shape[3]):
            raise DataError(
                f"windows must be (batch, {n_frames} frames, coil, ky, x) with a mask (batch, {n_frames} frames, ky), "
                f"got {tuple(hybrid.shape)} and {tuple(mask.shape)}"
            )
        if self.sens_net is None:
            raise ModelError("this PromptMR has no network for coil maps; reconstruct takes those of a slice")
        mask = mask.bool()
        reference = [time_average(*window) for window in zip(hybrid, mask, strict=True)]
        averages, averaged = (torch.stack(parts) for parts in zip(*reference, strict=True))
        measured = to_lines(hybrid, mask)
        maps = self._coil_maps(self.sens_net, measured, mask, low_frequencies, (averages, averaged))
        return self._cascade(measured, measured, mask, maps, only_centre=only_centre)

    @staticmethod
    def _coil_maps(
        sens_net: SensitivityNetwork,
        measured: torch.Tensor,
        mask: torch.Tensor,
        low_frequencies: int | torch.Tensor | None,
        reference: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Learned maps ``(batch, frame, coil, x, y)``; `reference` is lines ``(batch, coil, ky, x)``, mask."""
        centre, is_own = _centres(mask, reference[1], low_frequencies)
        replacement = None if bool(is_own.all()) else to_lines(*reference)
        portion = max(1, sens_net.portion(measured.shape[-2:], mask.device) // max(1, measured.shape[2]))
        maps = torch.empty_like(measured)
        for entry in range(len(measured)):
            for first in range(0, measured.shape[1], portion):
                frames = slice(first, first + portion)
                kspace = measured[entry, frames]
                if replacement is not None:
                    kspace = torch.where(is_own[entry, frames, None, None, None], kspace, replacement[entry])
                kspace = kspace * centre[entry, frames, None, None]
                maps[entry, frames] = sens_net(torch.fft.ifft(kspace, norm="ortho"))
        return maps

    def _window_portion(self, shape: tuple[int, int, int], device: torch.device) -> int:
        """Number of windows of (coil, x, y) that go through the cascades together."""
        n_coils, n_x, n_y = shape
        config = self.config
        return _portion((4 * config.features + 8 * config.adjacent_frames * n_coils) * n_x * n_y, device)

    def _device(self) -> torch.device:
        """Where the weights are."""
        return self.cascades[0].dc_weight.device  # type: ignore[return-value]

    def _cascade(
        self, kspace: torch.Tensor, measured: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor, *, only_centre: bool
    ) -> torch.Tensor:
        """Run the cascades on ``(batch, frame, coil, x, ky)``; the last may give the centre frame alone."""
        weights = torch.fft.ifftshift(mask, -1)[:, :, None, None].to(measured.real.dtype)
        every, centre = slice(None), slice(mask.shape[1] // 2, mask.shape[1] // 2 + 1)
        for i, cascade in enumerate(self.cascades, 1):
            frames = centre if only_centre and i == len(self.cascades) else every
            kspace = cascade(kspace, measured, weights, maps, frames)
        return kspace


def to_lines(hybrid: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Bring data into the form of the cascades.

    Parameters
    ----------
    hybrid
        ``(..., coil, ky, x)`` complex64.
    mask
        ``(..., ky)`` bool.

    Returns
    -------
    torch.Tensor
        ``(..., coil, x, ky)``, contiguous: zero frequency at index 0, zero where not measured, with a phase so that
        ``torch.fft.ifft`` has the origin at ``N//2``. The cascades do nothing along ky that such a phase would change.
    """
    kspace = torch.where(mask[..., None, None, :], hybrid.mT * _centring(mask.shape[-1], hybrid), 0)
    lines: torch.Tensor = torch.fft.ifftshift(kspace, -1).contiguous()
    return lines


def from_lines(kspace: torch.Tensor) -> torch.Tensor:
    """Undo `to_lines`: ``(..., coil, x, ky)`` to ``(..., coil, ky, x)``."""
    hybrid: torch.Tensor = (torch.fft.fftshift(kspace, -1) * _centring(kspace.shape[-1], kspace).conj()).mT
    return hybrid


def _centring(n_lines: int, like: torch.Tensor) -> torch.Tensor:
    """Phase ``(ky,)``, zero frequency at ``N//2``, that moves the origin of the image from index 0 to ``N//2``."""
    centre = n_lines // 2
    frequency = torch.arange(n_lines) - centre
    turns = (-centre * frequency).remainder(n_lines).double() / n_lines
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(like.device, like.dtype)


def _centres(
    mask: torch.Tensor, reference_mask: torch.Tensor, low_frequencies: int | torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the lines that maps are made from.

    Parameters
    ----------
    mask
        ``(batch, frame, ky)`` bool.
    reference_mask
        ``(batch, ky)`` bool, of lines that may stand in for those of a frame.
    low_frequencies
        As for `PromptMR.forward`.

    Returns
    -------
    tuple of torch.Tensor
        ``(batch, frame, ky)`` bool, the lines, zero frequency at index 0; and ``(batch, frame)`` bool, whether they are
        the frame's own.
    """
    n_lines = mask.shape[-1]
    sampled = mask.any(-1)
    own = central_lines((mask | ~sampled[..., None]).all(1))
    other = central_lines(reference_mask).clamp(max=_REFERENCE_LINES)
    if low_frequencies is not None:
        given = torch.as_tensor(low_frequencies, device=mask.device).expand_as(own)
        own, other = torch.where(given > 0, given, own), torch.where(given > 0, given, other)
    # One central line is too little; but where the reference has no more, it is that of the frame.
    is_own = sampled & ((own > 1) | (other == 1))[:, None]
    count = torch.where(is_own, own[:, None], other[:, None])[..., None]
    first = (n_lines - count + 1) // 2
    line = torch.arange(n_lines, device=mask.device)
    return torch.fft.ifftshift((line >= first) & (line < first + count), -1), is_own


def _portion(image_bytes: int, device: torch.device) -> int:
    """Number of images that are processed together."""
    return max(1, _PORTION_BYTES.get(device.type, _PORTION_BYTES["cuda"]) // max(1, image_bytes))


def _padded(size: int) -> int:
    """The size that a U-net works at."""
    return size + -size % _FACTOR


def _root_sum_of_squares(coils: torch.Tensor) -> torch.Tensor:
    """Over the coils of ``(..., coil, x, y)``; its gradient is finite where it is zero."""
    power = torch.view_as_real(coils).square().sum(-4).sum(-1)
    return torch.where(power > 0, torch.where(power > 0, power, 1).sqrt(), 0)


def _combine(coils: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Root sum of squares of ``(..., coil, x, y)`` with the phase of the weighted sum."""
    combined = (weights * coils).sum(-3)
    direction = torch.where(combined == 0, 1, combined.sgn())
    return _root_sum_of_squares(coils) * direction


def _is_shared_slope(key: str) -> bool:
    """Whether a tensor, by the authors' name, is the slope that all blocks share."""
    return key.endswith(_SLOPE) and not key.endswith(_FIRST_BLOCK + _SLOPE)


class SensitivityNetwork(nn.Module):
    """Coil maps from low-resolution coil images, each coil on its own, then divided by their root sum of squares."""

    def __init__(self, config: PromptMRConfig, shared_slope: nn.PReLU) -> None:
        super().__init__()
        self._features = config.sens_features
        self.norm_unet = NormPromptUnet(
            1, config.sens_features, config.sens_feature_dim, config.sens_prompt_dim, config, shared_slope
        )

    def forward(self, coils: torch.Tensor) -> torch.Tensor:
        """``(frame, coil, x, y)`` complex64 to maps of that shape, of unit norm or zero."""
        images = coils.flatten(0, 1)[:, None]
        portion = self.portion(coils.shape[-2:], coils.device)
        maps = torch.cat([self.norm_unet(part) for part in torch.split(images, portion)]).reshape(coils.shape)
        norm = _root_sum_of_squares(maps)[:, None]
        return maps / torch.where(norm > 0, norm, 1)

    def portion(self, size: tuple[int, ...], device: torch.device) -> int:
        """Number of coil images of (x, y) that are processed together."""
        n_x, n_y = size
        return _portion(4 * self._features * n_x * n_y, device)


class Cascade(nn.Module):
    """One step: data consistency, and the U-net's change of the combined image in the k-space of every coil."""

    def __init__(self, config: PromptMRConfig, shared_slope: nn.PReLU) -> None:
        super().__init__()
        widths = config.features, config.feature_dim, config.prompt_dim
        self.model = NormPromptUnet(config.adjacent_frames, *widths, config, shared_slope, keeps_mean=config.keeps_mean)
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(
        self, kspace: torch.Tensor, measured: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor, frames: slice
    ) -> torch.Tensor:
        """``(batch, frame, coil, x, ky)`` of all frames to that of some; mask ``(batch, frame, 1, 1, ky)``, real."""
        image = (maps.conj() * torch.fft.ifft(kspace, norm="ortho")).sum(2)
        change = self.model(image)[:, frames, None]
        kspace = kspace[:, frames]
        kept = torch.addcmul(kspace, self.dc_weight * mask[:, frames], measured[:, frames] - kspace)
        return kept.sub_(torch.fft.fft(maps[:, frames] * change, norm="ortho"))


class NormPromptUnet(nn.Module):
    """A U-net for complex images: normalised, padded to a multiple of eight, and back.

    Parameters
    ----------
    images
        Complex channels.
    features, feature_dim, prompt_dim
        Widths.
    config
        Everything else.
    shared_slope
        The PReLU of all blocks but the first.
    keeps_mean
        Whether the mean that is taken out is put back.
    """

    def __init__(
        self,
        images: int,
        features: int,
        feature_dim: Widths,
        prompt_dim: Widths,
        config: PromptMRConfig,
        shared_slope: nn.PReLU,
        *,
        keeps_mean: bool = True,
    ) -> None:
        super().__init__()
        self._keeps_mean = keeps_mean
        self.unet = PromptUnet(2 * images, features, feature_dim, prompt_dim, config, shared_slope)
        self._channels = 2 * images, features, feature_dim[0]
        self._prompt = prompt_dim[0], config.prompt_size[0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` complex64 to the same; a constant image comes out as it is, or as zero."""
        n_rows, n_columns = image.shape[-2:]
        rows, columns = _padded(n_rows) - n_rows, _padded(n_columns) - n_columns
        top, left = rows // 2, columns // 2
        channels = torch.cat((image.real, image.imag), 1)
        deviation, mean = torch.std_mean(channels, (1, 2, 3), keepdim=True)
        channels = (channels - mean) / torch.where(deviation > 0, deviation, 1)
        channels = self.unet(functional.pad(channels, (left, columns - left, top, rows - top)))
        channels = channels[..., top : top + n_rows, left : left + n_columns] * deviation
        if self._keeps_mean:
            channels = channels + mean
        return torch.complex(*channels.chunk(2, 1))

    def working_bytes(self, size: tuple[int, int]) -> int:
        """Predict the memory for one image (row, column) at the peak, without weights and input.

        That is in the last block, at full size: its input, two between its convolutions, the features of the encoder,
        and at half the size what the decoder started from. Of small images it is where the first prompt is made.
        """
        n_rows, n_columns = size
        pixels = _padded(n_rows) * _padded(n_columns)
        channels, features, features_below = self._channels
        prompt_features, side = self._prompt
        last = 4 * features * pixels + (2 * features_below + prompt_features) * pixels // 4
        prompt = (
            features * pixels + (features_below + 3 * prompt_features) * pixels // 4 + 2 * prompt_features * side**2
        )
        return 4 * (max(last, prompt) + 3 * channels * pixels)


class PromptUnet(nn.Module):
    """A U-net of three levels with prompts in the decoders; widths as `NormPromptUnet`."""

    def __init__(
        self,
        channels: int,
        features: int,
        feature_dim: Widths,
        prompt_dim: Widths,
        config: PromptMRConfig,
        shared_slope: nn.PReLU,
    ) -> None:
        super().__init__()

        def block(width: int, slope: nn.PReLU = shared_slope) -> AttentionBlock:
            return AttentionBlock(width, slope, attention=config.channel_attention)

        def blocks(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(block(width) for _ in range(count)))

        def encoder(i: int) -> EncoderLevel:
            parts = blocks(widths[i], config.encoder_blocks[i])
            if i == 0 and len(parts):
                parts[0] = block(widths[0], nn.PReLU())
            return EncoderLevel(parts, widths[i], widths[i + 1])

        def skip(i: int) -> nn.Sequential:
            return nn.Sequential(OrderedDict(skip_attn=blocks(widths[i], config.skip_blocks[i])))

        def prompt(i: int) -> Prompt:
            length, size = config.prompt_length[i], config.prompt_size[i]
            return Prompt(widths[i + 1], prompt_dim[i], length, size, learnable=config.learnable_prompt)

        def decoder(i: int) -> DecoderLevel:
            width = widths[i + 1] + prompt_dim[i]
            fuse = blocks(width, config.decoder_blocks[i])
            return DecoderLevel(fuse, block(widths[i]), (width, widths[i + 1], widths[i]))

        widths = (features, *feature_dim)
        self.feat_extract = _convolution(channels, features)
        self.enc_level1, self.enc_level2, self.enc_level3 = map(encoder, range(3))
        self.skip_attn1, self.skip_attn2, self.skip_attn3 = map(skip, range(3))
        self.bottleneck = blocks(widths[-1], config.bottleneck_blocks)
        self.prompt_level1, self.prompt_level2, self.prompt_level3 = map(prompt, range(3))
        self.dec_level1, self.dec_level2, self.dec_level3 = map(decoder, range(3))
        self.conv_last = _convolution(features, channels, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to the same; rows and columns are multiples of eight."""
        # Measured on the CPU: convolutions 1.4 times, bilinear enlargement several times as fast as with rows last.
        features = self.feat_extract(features.contiguous(memory_format=torch.channels_last))
        encoded = []
        for encoder in (self.enc_level1, self.enc_level2, self.enc_level3):
            encoded.append(encoder.encoder(features))
            features = encoder.down(encoded[-1])
        features = self.bottleneck(features)
        for prompt, decoder, skip in (
            (self.prompt_level3, self.dec_level3, self.skip_attn3),
            (self.prompt_level2, self.dec_level2, self.skip_attn2),
            (self.prompt_level1, self.dec_level1, self.skip_attn1),
        ):
            features = decoder(torch.cat((features, prompt(features)), 1), skip(encoded.pop()))
        output: torch.Tensor = self.conv_last(features)
        return output


class EncoderLevel(nn.Module):
    """Blocks, then half the size."""

    def __init__(self, blocks: nn.Sequential, width: int, width_below: int) -> None:
        super().__init__()
        self.encoder = blocks
        self.down = nn.Conv2d(width, width_below, 3, stride=2, padding=1)


class Prompt(nn.Module):
    """A mixture of fixed components, with weights from the features."""

    def __init__(self, width: int, prompt_width: int, length: int, size: int, *, learnable: bool) -> None:
        super().__init__()
        components = torch.rand(1, length, prompt_width, size, size)
        self.prompt_param = nn.Parameter(components, requires_grad=learnable)
        self.linear_layer = nn.Linear(width, length)
        self.dec_conv3x3 = _convolution(prompt_width, prompt_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to a prompt of that size."""
        shares = self.linear_layer(features.mean((-2, -1))).softmax(-1)
        components = self.prompt_param[0]
        mixed = (shares @ components.flatten(1).to(shares)).unflatten(1, components.shape[1:])
        resized = functional.interpolate(mixed, features.shape[-2:], mode="bilinear")
        prompt: torch.Tensor = self.dec_conv3x3(resized.contiguous(memory_format=torch.channels_last))
        return prompt


class DecoderLevel(nn.Module):
    """Blocks on features and prompt, then twice the size, plus what the encoder had there."""

    def __init__(self, blocks: nn.Sequential, last_block: AttentionBlock, widths: Widths) -> None:
        super().__init__()
        width, reduced, width_above = widths
        self.fuse = blocks
        self.reduce = nn.Conv2d(width, reduced, 1, bias=False)
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear")
        self.up = nn.Sequential(enlarge, nn.Conv2d(reduced, width_above, 1, bias=False))
        self.ca = last_block

    def forward(self, features: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to twice as many rows and columns, as `skipped` has."""
        enlarge, narrow = self.up
        features = enlarge(narrow(self.reduce(self.fuse(features))))
        output: torch.Tensor = self.ca(features.add_(skipped))
        return output


class AttentionBlock(nn.Module):
    """Two convolutions, weighted channel by channel by what they average to, added to the input."""

    def __init__(self, width: int, slope: nn.PReLU, *, attention: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), slope, _convolution(width, width))
        self.CA = ChannelAttention(width) if attention else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to the same."""
        change = self.body(features)
        return features + change if self.CA is None else torch.addcmul(features, change, self.CA(change))


class ChannelAttention(nn.Module):
    """A weight between zero and one for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow, widen = nn.Conv2d(width, width // 4, 1, bias=False), nn.Conv2d(width // 4, width, 1, bias=False)
        self.conv_du = nn.Sequential(narrow, nn.ReLU(), widen, nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to ``(image, channel, 1, 1)``."""
        weights: torch.Tensor = self.conv_du(features.mean((-2, -1), keepdim=True))
        return weights


def _convolution(channels: int, features: int, side: int = 3) -> nn.Conv2d:
    """A convolution without bias that keeps the size."""
    return nn.Conv2d(channels, features, side, padding=side // 2, bias=False)
