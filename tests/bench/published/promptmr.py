"""PromptMR as published: maps anew in every window, 2-D transforms with shifts, real and imaginary part as two numbers.

No guard of ours is here: an empty coil or frame gives NaN. Coil images pass the map network one by one (the authors'
``low_mem``), which on a CPU is the faster of their two ways.
"""

import torch
from torch.nn import functional


def forward(network, hybrid, mask):
    """Reconstruct a series.

    Parameters
    ----------
    network
        Our `PromptMR`, for its weights.
    hybrid
        ``(frame, coil, ky, x)`` complex64.
    mask
        ``(frame, ky)`` bool, the same in all frames as the published network wants it.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` float32: magnitudes.
    """
    n_frames, half = len(hybrid), network.config.adjacent_frames // 2
    kspace = transform(torch.view_as_real(hybrid.mT.contiguous()), torch.fft.fftn, (-3,))
    line_mask = mask[0][None, None, None, :, None]
    images = []
    for frame in range(n_frames):
        window = [kspace[(frame + shift) % n_frames] for shift in range(-half, half + 1)]
        images.append(one_window(network, torch.cat(window)[None], line_mask)[0])
    return torch.stack(images).mT


def one_window(network, masked_kspace, mask, low_frequencies=None):
    """From k-space `(batch, frame and coil, readout, phase, 2)` and mask `(batch, any, 1, phase, 1)` to the image."""
    n_frames = network.config.adjacent_frames
    maps = sensitivity_maps(network.sens_net, masked_kspace, mask, n_frames, low_frequencies)
    kspace = masked_kspace.clone()
    for cascade in network.cascades:
        coils = multiply(transform(kspace, torch.fft.ifftn), conjugate(maps))
        image = torch.cat([part.sum(1, keepdim=True) for part in coils.chunk(n_frames, 1)], 1)
        change = norm_unet(cascade.model.unet, image)
        spread = [
            multiply(change[:, i : i + 1], part).expand_as(part) for i, part in enumerate(maps.chunk(n_frames, 1))
        ]
        model_term = transform(torch.cat(spread, 1), torch.fft.fftn)
        zero = torch.zeros(1, 1, 1, 1, 1).to(kspace)
        soft = torch.where(mask, kspace - masked_kspace, zero) * cascade.dc_weight
        kspace = kspace - soft - model_term
    centre = kspace.chunk(n_frames, 1)[n_frames // 2]
    return transform(centre, torch.fft.ifftn).square().sum(-1).sqrt().square().sum(1).sqrt()


def sensitivity_maps(sens_net, kspace, mask, n_frames, low_frequencies):
    n_lines = kspace.shape[-2]
    line = mask[:, 0, 0, :, 0].int()
    centre = n_lines // 2
    before, after = line[:, :centre].flip(1).argmin(1), line[:, centre:].argmin(1)
    count = torch.clamp(2 * torch.minimum(before, after), min=1)
    if low_frequencies:
        count = torch.full_like(count, low_frequencies)
    first = (n_lines - count + 1) // 2
    kept = torch.zeros_like(line)
    for entry in range(len(line)):
        kept[entry, first[entry] : first[entry] + count[entry]] = 1
    images = transform(kspace * kept[:, None, None, :, None], torch.fft.ifftn)
    maps = [norm_unet(sens_net.norm_unet.unet, images[:, i : i + 1]) for i in range(images.shape[1])]
    parts = torch.cat(maps, 1).chunk(n_frames, 1)
    return torch.cat([part / part.square().sum(-1).sum(1).sqrt()[:, None, ..., None] for part in parts], 1)


def norm_unet(unet, image):
    batch, n_images, height, width, _ = image.shape
    features = image.permute(0, 4, 1, 2, 3).reshape(batch, 2 * n_images, height, width)
    flat = features.reshape(batch, -1)
    mean, std = flat.mean(1)[:, None, None, None], flat.std(1)[:, None, None, None]
    features = (features - mean) / std
    rows, columns = -height % 8, -width % 8
    features = functional.pad(features, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    features = prompt_unet(unet, features)
    features = features[..., rows // 2 : rows // 2 + height, columns // 2 : columns // 2 + width]
    features = features * std + mean
    return features.reshape(batch, 2, n_images, height, width).permute(0, 2, 3, 4, 1).contiguous()


def prompt_unet(unet, features):
    features = unet.feat_extract(features)
    encoded = []
    for encoder in (unet.enc_level1, unet.enc_level2, unet.enc_level3):
        features = blocks(encoder.encoder, features)
        encoded.append(features)
        features = encoder.down(features)
    features = blocks(unet.bottleneck, features)
    for level in (3, 2, 1):
        prompt, decoder, skip = (getattr(unet, f"{name}{level}") for name in ("prompt_level", "dec_level", "skip_attn"))
        features = torch.cat([features, prompt_for(prompt, features)], 1)
        features = decoder.reduce(blocks(decoder.fuse, features))
        features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        features = decoder.up[1](features)
        features = block(decoder.ca, features + blocks(skip.skip_attn, encoded.pop()))
    return unet.conv_last(features)


def prompt_for(prompt, features):
    shares = functional.softmax(prompt.linear_layer(features.mean((-2, -1))), 1)
    components = prompt.prompt_param.repeat(len(features), 1, 1, 1, 1)
    mixed = torch.sum(shares[..., None, None, None] * components, 1)
    resized = functional.interpolate(mixed, features.shape[-2:], mode="bilinear", align_corners=False)
    return prompt.dec_conv3x3(resized)


def blocks(parts, features):
    for part in parts:
        features = block(part, features)
    return features


def block(part, features):
    change = part.body(features)
    if part.CA is not None:
        change = change * part.CA.conv_du(functional.adaptive_avg_pool2d(change, 1))
    return change + features


def transform(pairs, function, axes=(-3, -2)):
    """Centred transform of `(..., row, column, 2)` over the given axes, counted with the last one of two."""
    axes = tuple(axis + 1 for axis in axes)
    array = torch.fft.ifftshift(torch.view_as_complex(pairs), axes)
    array = function(array, dim=axes, norm="ortho")
    return torch.view_as_real(torch.fft.fftshift(array, axes))


def multiply(left, right):
    real = left[..., 0] * right[..., 0] - left[..., 1] * right[..., 1]
    imaginary = left[..., 0] * right[..., 1] + left[..., 1] * right[..., 0]
    return torch.stack((real, imaginary), -1)


def conjugate(pairs):
    return torch.stack((pairs[..., 0], -pairs[..., 1]), -1)
