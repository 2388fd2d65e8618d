"""Layers of ATLF-Net as its authors published them: path attention, low-rank fusion of CT and MR, basic block.

Feature maps are real, ``(image, channel, row, column)``. Convolutions keep the size and have no bias unless noted. The
names of the tensors are the authors' except for those of `PathAttention`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

QUARTER = 4  # the global features of the encoder have a quarter of the rows and columns


# --- path attention ---------------------------------------------------------------------------------------------------


def stem(channels: int) -> nn.Sequential:
    """Layers from features to keys or values; channels and size stay."""
    groups = max(1, channels // 8)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.GroupNorm(groups, channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.GroupNorm(groups, channels),
    )


class PathWeights(nn.Module):
    """Weights of the two paths, from the average of the features and a class.

    Parameters
    ----------
    channels
        Of the features.
    n_classes
        Classes, each of which adds one number to the average; may be 0.
    """

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self._n_classes = n_classes
        self.ln1 = nn.LayerNorm(channels + n_classes)
        self.ln2 = nn.LayerNorm(channels + n_classes)
        self.fc = nn.Linear(channels + n_classes, 2)

    def forward(self, features: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """Weigh the two paths.

        Parameters
        ----------
        features
            ``(image, channel, row, column)``.
        classes
            ``(image,)`` int64; None without classes.

        Returns
        -------
        torch.Tensor
            ``(image, 2)``, summing to one. Published with Gumbel noise, which makes the result random.
        """
        average = features.mean((-2, -1))
        if classes is not None:
            label = functional.one_hot(classes, self._n_classes).to(average)
            average = torch.cat((average, label), 1)
        logits = self.fc(self.ln2(functional.relu(self.ln1(average))))
        return torch.softmax(logits.float(), 1)


class PathMixture(nn.Module):
    """Two paths, of one pixel and of 3 x 3 pixels, mixed by weights from the features; parameters as `PathWeights`."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.path1, self.path3 = (
            nn.Sequential(
                nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.Softplus(),
            )
            for side in (1, 3)
        )
        self.weights = PathWeights(channels, n_classes)

    def forward(self, features: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """Mix the paths; arguments as `PathWeights.forward`, result like the features."""
        small, wide = self.weights(features, classes)[:, :, None, None, None].unbind(1)
        mixed: torch.Tensor = small * self.path1(features) + wide * self.path3(features)
        return mixed


class MultiHeadAttention(nn.Module):
    """Attention of every query to all keys, with a linear map before and after; the names are PyTorch's.

    Parameters
    ----------
    channels
        Of queries, keys and values.
    n_heads
        Heads; a divisor of the channels.
    """

    def __init__(self, channels: int, n_heads: int) -> None:
        super().__init__()
        self._n_heads = n_heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * channels, channels)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``(image, token, channel)`` each to one like the queries; the attention matrix is never stored whole."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            functional.linear(tokens, weight, bias).reshape(*tokens.shape[:2], self._n_heads, -1).transpose(1, 2)
            for tokens, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return result


class PathAttention(nn.Module):
    """The published attention block (``AVAT_DPA_Block``): every pixel attends to all pixels.

    Parameters
    ----------
    channels
        Of the features.
    n_heads
        Heads of the attention.
    n_classes
        Classes that the path weights know of; 0 for none.

    Notes
    -----
    The time is quadratic in the pixels: for small maps. The authors' names differ: ``front.theta_offset.net`` is
    `offset`, ``front.k_stem.net`` `k_stem`, ``dpa.k_path1.block`` `k_paths.path1`, ``dpa.dps_k`` `k_paths.weights`,
    ``dpa.mha`` `attention`, ``dpa.out`` `out`.
    """

    def __init__(self, channels: int, n_heads: int, n_classes: int = 0) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.offset = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        self.k_stem, self.v_stem = stem(channels), stem(channels)
        self.k_paths, self.v_paths = PathMixture(channels, n_classes), PathMixture(channels, n_classes)
        self.attention = MultiHeadAttention(channels, n_heads)
        self.out = nn.Conv2d(channels, channels, 1)

    def front(
        self, features: torch.Tensor, points: torch.Tensor | None = None, stripes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make queries, keys and values.

        Parameters
        ----------
        features
            ``(image, channel, row, column)``.
        points
            Reference points of the published block, added to the queries.
        stripes
            Its stripe position bias, of any size; resized and added too.

        Returns
        -------
        tuple of torch.Tensor
            Three like the features.
        """
        queries = features + self.offset(features)
        if points is not None:
            queries = queries + points
        if stripes is not None:
            queries = queries + functional.interpolate(stripes, queries.shape[-2:], mode="bilinear")
        return queries, self.k_stem(queries), self.v_stem(queries)

    def forward(
        self,
        features: torch.Tensor,
        classes: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        stripes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend; arguments as `front` and `PathWeights.forward`, result like the features, without a residual."""
        queries, keys, values = self.front(features, points, stripes)
        keys, values = self.k_paths(keys, classes), self.v_paths(values, classes)
        tokens = (maps.flatten(-2).mT for maps in (queries, keys, values))
        attended = self.attention(*tokens).mT.reshape(features.shape)
        result: torch.Tensor = self.out(attended)
        return result


# --- fusion -----------------------------------------------------------------------------------------------------------


class ConvolutionBlock(nn.Module):
    """3 x 3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, in_channels, row, column)`` to ``(image, channels, row / stride, column / stride)``."""
        return functional.relu(self.bn(self.conv(features)))


class Encoder(nn.Module):
    """The published REncoder: local features of an image and global ones of a quarter of its size; for both modalities.

    Parameters
    ----------
    base
        Local features; there are twice as many global ones.
    """

    def __init__(self, base: int) -> None:
        super().__init__()
        self.local = nn.Sequential(ConvolutionBlock(1, base), ConvolutionBlock(base, base))
        self.global_ = nn.Sequential(ConvolutionBlock(1, base, 2), ConvolutionBlock(base, 2 * base, 2))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(image, 1, row, column)``, multiples of four, to local and global features."""
        return self.local(image), self.global_(image)


class GlobalBlock(nn.Module):
    """The published GFAB: two convolution blocks on the global features, the same for both modalities."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(ConvolutionBlock(channels, channels), ConvolutionBlock(channels, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to the same."""
        result: torch.Tensor = self.block(features)
        return result


class LocalBlock(nn.Module):
    """The published LFAB: an invertible 1 x 1 convolution ``W = P L (U + diag(sign exp(log_s)))`` of local features.

    P is a permutation, L unit lower and U strictly upper triangular. The published call transforms the CT features and
    adds a number to those of the MR image; here it is applied to both.

    Notes
    -----
    Kingma and Dhariwal, Glow, NeurIPS 2018, doi:10.48550/arXiv.1807.03039.
    """

    p: torch.Tensor
    sign_s: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        permutation, lower, upper = torch.linalg.lu(rotation)
        scales = upper.diagonal()
        self.lower = nn.Parameter(lower)
        self.log_s = nn.Parameter(scales.abs().log())
        self.upper = nn.Parameter(upper.triu(1))
        self.register_buffer("p", permutation)
        self.register_buffer("sign_s", scales.sign())

    def matrix(self) -> torch.Tensor:
        """W, ``(channel, channel)``."""
        identity = torch.eye(len(self.log_s), dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + identity
        upper = self.upper.triu(1) + torch.diag(self.sign_s * self.log_s.exp())
        return self.p @ lower @ upper

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to the same."""
        return functional.conv2d(features, self.matrix()[:, :, None, None])

    def inverse(self, features: torch.Tensor) -> torch.Tensor:
        """Undo `forward`."""
        return functional.conv2d(features, torch.linalg.inv(self.matrix())[:, :, None, None])


class ModalityNetwork(nn.Module):
    """What the low-rank fusion does to the features of one modality, pixel by pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear_1, self.linear_2, self.linear_3 = (nn.Conv2d(channels, channels, 1) for _ in range(3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(image, channel, row, column)`` to the same."""
        features = self.norm(features)
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            features = functional.relu(layer(features))
        return features


class LowRankFusion(nn.Module):
    """The published LRFM: ``sum_r w_r (z'_ct A_r) * (z'_mr B_r) + b`` with ``z' = (1, z)``, in every pixel.

    Parameters
    ----------
    channels
        Of either modality, and of the result.
    rank
        Terms of the sum.

    Notes
    -----
    Liu et al., ACL 2018, doi:10.18653/v1/P18-1209, for two modalities. The published dropout before the linear layers
    is left out: its rate is not known.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.ct_subnet, self.mri_subnet = ModalityNetwork(channels), ModalityNetwork(channels)
        scale = channels**-0.5
        self.ct_factor = nn.Parameter(scale * torch.randn(rank, channels + 1, channels))
        self.mri_factor = nn.Parameter(scale * torch.randn(rank, channels + 1, channels))
        self.fusion_weights = nn.Parameter(torch.full((1, rank), rank**-0.5))
        self.fusion_bias = nn.Parameter(torch.zeros(1, channels))

    def forward(self, ct: torch.Tensor, mr: torch.Tensor) -> torch.Tensor:
        """Fuse ``(image, channel, row, column)`` of either modality; `ct` may be one image for several of `mr`."""
        ct, mr = self.ct_subnet(ct), self.mri_subnet(mr)
        fused = self.fusion_bias[0, :, None, None]
        factors = zip(self.fusion_weights[0], self.ct_factor, self.mri_factor, strict=True)
        for weight, ct_factor, mr_factor in factors:  # one by one, which takes less memory than all
            fused = fused + weight * _affine(ct, ct_factor) * _affine(mr, mr_factor)
        return fused


def _affine(features: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply features, with a one put before them, by ``(1 + channel, channel)`` in every pixel."""
    return functional.conv2d(features, factor[1:].mT[:, :, None, None], factor[0])


class Decoder(nn.Module):
    """The published RDecoder: one image from fused local and global features.

    Parameters
    ----------
    base
        Local features; there are twice as many global ones.
    """

    def __init__(self, base: int) -> None:
        super().__init__()
        enlarge = nn.ConvTranspose2d(2 * base, base, QUARTER, stride=QUARTER, bias=False)
        self.up = nn.Sequential(enlarge, nn.BatchNorm2d(base), nn.ReLU())
        self.fuse = nn.Sequential(ConvolutionBlock(2 * base, base), nn.Conv2d(base, 1, 1))

    def forward(self, global_features: torch.Tensor, local_features: torch.Tensor) -> torch.Tensor:
        """To ``(image, 1, row, column)``, any sign."""
        image: torch.Tensor = self.fuse(torch.cat((self.up(global_features), local_features), 1))
        return image


# --- reconstruction ---------------------------------------------------------------------------------------------------


def channel_statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation over the pixels of ``(image, channel, row, column)``, each ``(image, channel, 1, 1)`` float32.

    As published the variance is unbiased and has 1e-5 added; that of a single pixel is zero.
    """
    features = features.float()
    one_pixel = features.shape[-2:].numel() == 1
    variance, mean = torch.var_mean(features, (-2, -1), correction=0 if one_pixel else 1, keepdim=True)
    return mean, (variance + 1e-5).sqrt()


def normalise(features: torch.Tensor) -> torch.Tensor:
    """Bring every channel of ``(image, channel, row, column)`` to mean zero and deviation one."""
    mean, deviation = channel_statistics(features)
    return (features.float() - mean) / deviation


def adaptive_normalisation(features: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """AdaIN: give every channel the mean and deviation of a style; positions of its values in the style do not matter.

    Huang and Belongie, ICCV 2017, doi:10.1109/ICCV.2017.167.

    Parameters
    ----------
    features
        ``(image, channel, row, column)``.
    statistics
        `channel_statistics` of the style.
    """
    mean, deviation = statistics
    return normalise(features) * deviation + mean


class BasicBlock(nn.Module):
    """The published basic reconstruction block (BRB); its gradient step is data consistency, which is done outside.

    Two convolutions forward and two backward between one that expands the image and one that collects it; without the
    soft threshold of ISTA-Net+ (Zhang and Ghanem, CVPR 2018, doi:10.1109/CVPR.2018.00196), as published.

    Parameters
    ----------
    image_channels
        1 as published; 2 for real and imaginary part.
    channels
        Feature maps.
    """

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()

        def convolution(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1, bias=False)

        self.conv_D = convolution(image_channels, channels)
        self.conv1_forward, self.conv2_forward = convolution(channels, channels), convolution(channels, channels)
        self.conv1_backward, self.conv2_backward = convolution(channels, channels), convolution(channels, channels)
        self.conv_G = convolution(channels, image_channels)

    def expand(self, image: torch.Tensor) -> torch.Tensor:
        """``(image, image_channels, row, column)`` to features."""
        features: torch.Tensor = self.conv_D(image)
        return features

    def improve(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to the change of the image, and to the features after the backward convolutions.

        In training these should be what `improve` was given (symmetry).
        """
        there = self.conv2_forward(functional.relu(self.conv1_forward(features)))
        back = self.conv2_backward(functional.relu(self.conv1_backward(there)))
        return self.conv_G(back), back


def consistency_weight(weight: torch.Tensor) -> torch.Tensor:
    """``lambda / (1 + lambda)``: share of the measured data in a soft data consistency; at least zero."""
    positive = functional.relu(weight)
    return positive / (1 + positive)


def reflect_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Lengthen the last two axes to multiples of a number by reflection, however short they are.

    Parameters
    ----------
    image
        ``(..., row, column)``.
    multiple
        Of which the new rows and columns are multiples; those of before come first.
    """
    for axis in (-2, -1):
        size = image.shape[axis]
        added = -size % multiple
        if added:
            period = max(1, 2 * (size - 1))
            index = torch.arange(size + added, device=image.device) % period
            image = image.index_select(axis, torch.minimum(index, period - index))
    return image
