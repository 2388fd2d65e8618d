"""Complex cine series with known truth, drawn at random: anatomy, view, contrast, heart, breath and phase.

Motion decides what a network learns, so the kinds differ in motion: a breath-held cine of one
cardiac cycle, other views with breathing and motion of the whole field, and real-time series without any period.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from recon_core.simulate.phantom import BLOOD_SIGNAL, BeatingThorax, pixel_positions, volume_curve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.training.library import Library

    Times = NDArray[np.floating[Any]]

Kind = Literal["cine", "view", "realtime"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_RESPIRATION = (0.2, 0.35)  # breaths per second
_FINEST = 256  # pixels, finest grid that a series is drawn on unless its own is finer
# How far the ends of k-space may be raised: share of the energy beyond so much of either axis, and steps to find it.
_OUTER, _HALF, _STEP = 1 / 16, 0.5, 0.05
_SHAPES = 90  # of a made-up anatomy


@dataclass(frozen=True)
class Series:
    """A cine series."""

    image: NDArray[np.complex64]
    """``(frame, y, x)`` complex64, about one at the brightest tissue."""
    anatomy: NDArray[np.float32]
    """``(y, x)`` float32 between 0 and 1: another contrast of the first frame, as a second modality would see it."""
    kind: Kind
    """One of `KINDS`."""


@dataclass(frozen=True)
class _Rhythm:
    """When the frames are taken, each ``(frame,)``."""

    cardiac: Times  # cycles since the first R wave
    breath: Times  # -1 to 1
    seconds: Times


def draw_series(
    seed: tuple[int, ...],
    library: Library,
    *,
    kind: Kind | None = None,
    frames: int | None = None,
    matrix: tuple[int, int] | None = None,
) -> Series:
    """Draw a series.

    Parameters
    ----------
    seed
        Same seed, library and arguments, same series.
    library
        Images that join the drawn anatomies; may be empty.
    kind, frames, matrix
        Chosen at random where None: frames from 8 to 40, ``(ny, nx)`` from 96 to 192.
    """
    rng = np.random.default_rng([*seed, 101])
    kind = kind or KINDS[int(rng.choice(3, p=(0.4, 0.3, 0.3)))]
    frames = frames or int(rng.choice((8, 10, 12, 16, 20, 25, 30, 40)))
    ny, nx = matrix or (int(rng.integers(48, 97)) * 2, int(rng.integers(48, 97)) * 2)
    rhythm = _draw_rhythm(rng, kind, frames)
    scene = _draw_scene(rng, library, kind, rhythm)

    fine = tuple(max(n, min(_FINEST, round(n * rng.uniform(1.05, 1.5)))) for n in (ny, nx))
    picture = _warp(rng, scene, kind, rhythm, fine)
    magnitude = _light(rng, picture, kind, rhythm)
    image = magnitude * _phase(rng, magnitude, rhythm)
    image = _resample(image, (ny, nx))
    image = image / _brightest(image)
    return Series(image.numpy(), second_contrast(rng, image[0].abs()).numpy(), kind)


def sharpened(series: Series, strength: float) -> Series:
    """Raise what is fine in a series: ``1 + strength r^2`` of k-space, with r = 1 at the ends of its axes.

    Scenes are blurred where they are turned and zoomed; patients have finer edges than nine of ten of them without it.

    Parameters
    ----------
    series
        As drawn.
    strength
        Nothing is changed by 0; by 3 they have about as much of what is fine as the simulated subjects of the suite. No
        more is done than leaves a sixteenth of the energy beyond half of k-space along either axis, which scenes of
        few pixels have as they are: more is texture that no body has.

    Returns
    -------
    Series
        With the brightest tissue at about one again.
    """
    spectrum = torch.fft.fft2(torch.from_numpy(series.image))
    energy = spectrum.abs().square().sum(0)
    places = [torch.fft.fftfreq(n).mul(2) for n in energy.shape]
    radius = places[0].square()[:, None] + places[1].square()

    def is_too_fine(strength: float) -> bool:
        raised = energy * (1 + strength * radius).square()
        outer = (raised.sum(1)[places[0].abs() >= _HALF].sum(), raised.sum(0)[places[1].abs() >= _HALF].sum())
        return float(max(outer)) > _OUTER * float(raised.sum())

    while strength > 0 and is_too_fine(strength):
        strength = max(0.0, strength - _STEP)
    image = torch.fft.ifft2(spectrum * (1 + strength * radius))
    return replace(series, image=(image / _brightest(image)).numpy())


def _brightest(image: torch.Tensor) -> float:
    """The brightest tissue of a series: but for the very brightest pixels."""
    peak = float(image.abs().flatten().kthvalue(max(1, int(0.999 * image.numel()))).values)
    return max(peak, 1e-6)


def _draw_rhythm(rng: np.random.Generator, kind: Kind, frames: int) -> _Rhythm:
    if kind == "cine":
        cardiac = np.arange(frames) / frames + rng.uniform(0, 1)
        held = rng.uniform(-1, 1) + 0.1 * rng.standard_normal() * np.linspace(-1, 1, frames)
        return _Rhythm(cardiac, held, np.arange(frames) / frames * rng.uniform(0.6, 1.2))
    rr = rng.uniform(0.5, 1.3)
    # views are gated more often than not: one cycle then, but each frame from another breath
    step = rr / frames if kind == "view" and rng.random() < 0.5 else float(np.exp(rng.uniform(*np.log((0.03, 0.12)))))
    seconds = np.arange(frames) * step
    beats = rr * (1 + rng.uniform(0, 0.2) * rng.standard_normal(int(seconds[-1] / rr / 0.3) + 3).clip(-2, 2))
    if kind == "realtime" and rng.random() < 0.25:  # an ectopic beat and the pause after it
        beats[0], beats[1] = 0.6 * rr, 1.4 * rr
    waves = np.concatenate([[0.0], np.cumsum(beats)])
    cardiac = np.interp(seconds, waves, np.arange(len(waves))) + rng.uniform(0, 1)
    rate = rng.uniform(*_RESPIRATION) * rng.choice((0.0, 1.0, 1.0, 1.6))
    turn = 2 * np.pi * (rate * seconds + rng.uniform(0, 1))
    # longer in expiration than in inspiration
    breath = np.asarray(np.abs(np.sin(turn / 2)) ** rng.uniform(1.0, 2.5) * 2 - 1, np.float64)
    if rng.random() < 0.3:
        breath = np.asarray(np.sin(turn) + 0.3 * np.sin(2.3 * turn), np.float64)
    return _Rhythm(cardiac, breath, seconds)


# --- anatomy ---------------------------------------------------------------------------------------------------------


def _draw_scene(rng: np.random.Generator, library: Library, kind: Kind, rhythm: _Rhythm) -> torch.Tensor:
    """Magnitudes ``(frame or 1, y, x)`` of an anatomy with a beating heart."""
    choices = {"thorax": 0.35, "cine": 0.4 * bool(library.cines), "still": 0.25 * bool(library.stills), "shapes": 0.2}
    if kind == "cine":
        choices["shapes"] = 0.05
    weights = np.array([*choices.values()])
    name = str(rng.choice([*choices], p=weights / weights.sum()))
    if name == "thorax":
        return _draw_thorax(rng, rhythm)
    if name == "cine":
        return _interpolated(library.cines[int(rng.integers(len(library.cines)))], rhythm.cardiac)
    if name == "still":
        return torch.from_numpy(library.stills[int(rng.integers(len(library.stills)))])[None]
    return _draw_shapes(rng)


def _draw_thorax(rng: np.random.Generator, rhythm: _Rhythm) -> torch.Tensor:
    fov = rng.uniform(260, 380)
    thorax = BeatingThorax(
        pixel_positions(240, fov),
        pixel_positions(240, fov),
        slice_offset_mm=rng.uniform(-45, 35),
        ejection_fraction=rng.uniform(0.2, 0.75),
        seed=int(rng.integers(2**31)),
    )
    depth = rng.uniform(0, 9)
    frames = [
        np.abs(thorax.frame(cardiac, depth * breath))
        for cardiac, breath in zip(rhythm.cardiac, rhythm.breath, strict=True)
    ]
    return torch.from_numpy(np.stack(frames) / np.float32(BLOOD_SIGNAL))


def _interpolated(cine: NDArray[np.float32], cardiac: Times) -> torch.Tensor:
    """A periodic cine at other moments of its cycle."""
    place = np.mod(cardiac, 1.0) * len(cine)
    first = np.floor(place).astype(int) % len(cine)
    share = (place - np.floor(place)).astype(np.float32)[:, None, None]
    frames = torch.from_numpy(cine)
    return torch.lerp(frames[first], frames[(first + 1) % len(cine)], torch.from_numpy(share))


def _draw_shapes(rng: np.random.Generator) -> torch.Tensor:
    """Overlapping ellipses with texture: edges in all directions, unlike any anatomy."""
    size = 240
    axis = torch.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None, :]
    texture = _smooth(rng, (size, size), 24) + _smooth(rng, (size, size), 60)
    image = torch.zeros(size, size)
    for number in range(_SHAPES):
        radius = float(np.exp(rng.uniform(*np.log((0.02, 0.9 if number < 8 else 0.3)))))
        a, b = radius, radius * rng.uniform(0.2, 1)
        turn, cy, cx = rng.uniform(0, np.pi), *rng.uniform(-0.9, 0.9, 2)
        u = (np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)) / a
        v = (np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)) / b
        cover = ((1 - (u * u + v * v).sqrt()) * b * size / 2 + 0.5).clamp(0, 1)
        value = float(rng.uniform(0, 1) ** 1.5) * (1 + rng.uniform(0, 0.3) * texture)
        image = torch.lerp(image, value, cover * float(rng.choice((1.0, 1.0, 0.6))))
    return image[None].clamp(min=0)


def second_contrast(rng: np.random.Generator, magnitude: torch.Tensor) -> torch.Tensor:
    """Show the same borders in other grey values, as a CT does; texture is not shared.

    Parameters
    ----------
    rng
        Draws the grey values.
    magnitude
        ``(y, x)`` float32, about one at the brightest tissue.

    Returns
    -------
    torch.Tensor
        ``(y, x)`` float32 between 0 and 1; air stays 0.
    """
    knots = torch.from_numpy(np.concatenate([[0.0], rng.uniform(0, 1, 5)]).astype(np.float32))
    place = functional.avg_pool2d(magnitude[None, None], 3, 1, 1)[0, 0].clamp(0, 1) * (len(knots) - 1)
    first = place.floor().long().clamp(max=len(knots) - 2)
    return torch.lerp(knots[first], knots[first + 1], place - first)


# --- motion ----------------------------------------------------------------------------------------------------------


def _warp(
    rng: np.random.Generator, scene: torch.Tensor, kind: Kind, rhythm: _Rhythm, size: tuple[int, ...]
) -> torch.Tensor:
    """Turn, zoom and deform a scene frame by frame onto a grid ``(frame, y, x)``."""
    n_frames = len(rhythm.cardiac)
    rows, columns = (torch.linspace(-1, 1, n) for n in size)
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (y, x, 2), x first

    turned = kind == "view" or rng.random() < 0.3
    angle = rng.uniform(-np.pi, np.pi) if turned else rng.normal(0, 0.15)
    zoom = rng.uniform(0.5, 1.1) * np.exp(rng.normal(0, 0.1, 2))
    flip = np.array((rng.choice((-1.0, 1.0)), 1.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    view = torch.from_numpy((rotation * zoom * flip).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, 2).astype(np.float32))

    still = scene.shape[0] == 1
    heart = place - torch.from_numpy(rng.uniform(-0.25, 0.25, 2).astype(np.float32))
    near = torch.exp(-(heart.square().sum(-1) / (2 * rng.uniform(0.15, 0.35) ** 2)))
    strength = rng.uniform(0.03, 0.09) if still else rng.choice((0.0, rng.uniform(0, 0.05)))
    if kind == "view":
        near, strength = near + 0.4, max(strength, rng.uniform(0.01, 0.05))
    # inwards with the volume of the ventricle, and some wandering with harmonics of the beat
    squeeze = _tensor(1 - volume_curve(rhythm.cardiac, 0.6)) * 1.6
    turn = 2 * np.pi * rhythm.cardiac
    waves = [_tensor(np.cos(k * turn + rng.uniform(0, 2 * np.pi)) / k) for k in (1, 2, 3)]
    fields = [_smooth_field(rng, size, 5) * near[..., None] for _ in waves]
    motion = squeeze.view(-1, 1, 1, 1) * (strength * near[..., None] * heart * rng.uniform(1, 3))
    for wave, field in zip(waves, fields, strict=True):
        motion = motion + wave.view(-1, 1, 1, 1) * (0.4 * strength * field)

    if kind != "cine":
        reach = rng.uniform(0.0, 0.09)
        direction = torch.from_numpy(rng.normal(0, 1, 2).astype(np.float32))
        direction = direction / direction.norm()
        breathing = direction * (0.5 + 0.5 * _smooth(rng, size, 3)[..., None]) + 0.5 * _smooth_field(rng, size, 3)
        motion = motion + _tensor(rhythm.breath).view(-1, 1, 1, 1) * (reach * breathing)
        # turning and zooming of the whole field, and drift of the patient
        drift = _tensor(np.linspace(-1, 1, n_frames)) * rng.choice((0.0, 0.0, 0.04))
        beat = waves[0] * rng.uniform(0, 0.02)
        swirl = torch.stack((-place[..., 1], place[..., 0]), -1) * rng.normal(0, 0.7) + place * rng.normal(0, 0.7)
        motion = motion + (drift + beat).view(-1, 1, 1, 1) * (swirl + direction)

    static = 0.06 * _smooth_field(rng, size, 4)
    grid = (place + motion + static) @ view.T + shift
    source = scene.expand(n_frames, -1, -1)[:, None]
    return functional.grid_sample(source, grid, mode="bicubic", align_corners=False)[:, 0].clamp(min=0)


def _smooth(rng: np.random.Generator, size: tuple[int, ...], knots: int) -> torch.Tensor:
    """Random field ``(y, x)`` of about unit deviation, with as many knots along each axis."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, knots, knots)).astype(np.float32))
    return functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0, 0]


def _smooth_field(rng: np.random.Generator, size: tuple[int, ...], knots: int) -> torch.Tensor:
    """Random vectors ``(y, x, 2)``."""
    return torch.stack((_smooth(rng, size, knots), _smooth(rng, size, knots)), -1)


def _tensor(values: Times) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


# --- contrast and phase -----------------------------------------------------------------------------------------------


def _light(rng: np.random.Generator, picture: torch.Tensor, kind: Kind, rhythm: _Rhythm) -> torch.Tensor:
    """Change the contrast, let blood flow in, and shade the field; ``(frame, y, x)``."""
    size = tuple(picture.shape[1:])
    picture = picture.clamp(max=1.4) ** rng.uniform(0.65, 1.3)
    picture = picture * torch.exp(rng.uniform(0, 0.3) * _smooth(rng, size, 4))
    # brighter with fresh blood: bright pixels only, in some places only
    flowing = picture.clamp(0, 1).square() * torch.exp(-_smooth(rng, size, 6).square())
    inflow = _tensor(np.cos(2 * np.pi * (rhythm.cardiac - rng.uniform(0, 1)))) * rng.uniform(0, 0.2)
    if kind == "realtime" and rng.random() < 0.25:  # contrast agent arrives
        arrival = rhythm.seconds[-1] * rng.uniform(0, 1)
        width = max(rhythm.seconds[-1], 0.1) * rng.uniform(0.1, 0.5)
        inflow = inflow + _tensor(np.tanh((rhythm.seconds - arrival) / width)) * rng.uniform(0.1, 0.6)
    picture = picture * (1 + inflow.view(-1, 1, 1) * flowing)
    return picture * (1 + rng.uniform(0, 0.06) * _smooth(rng, size, 90))


def _phase(rng: np.random.Generator, magnitude: torch.Tensor, rhythm: _Rhythm) -> torch.Tensor:
    """Phase factor ``(frame, y, x)``: smooth, with the tissue, and with the beat."""
    size = tuple(magnitude.shape[1:])
    smooth = rng.uniform(0, np.pi) * _smooth(rng, size, 3) + rng.uniform(0, 0.5) * _smooth(rng, size, 7)
    tissue = rng.normal(0, 0.5) * magnitude
    if rng.random() < 0.3:  # fat, opposed to water
        low, width = rng.uniform(0.6, 1.0), 0.05
        tissue = tissue + np.pi * torch.sigmoid((magnitude - low) / width)
    pulse = _tensor(np.sin(2 * np.pi * rhythm.cardiac)).view(-1, 1, 1) * (rng.uniform(0, 0.35) * _smooth(rng, size, 5))
    return torch.polar(torch.ones(()), smooth + tissue + pulse)


def _resample(image: torch.Tensor, matrix: tuple[int, int]) -> torch.Tensor:
    """Keep the centre of k-space that a scan of this matrix measures."""
    kspace = image
    for axis, size in zip((-2, -1), matrix, strict=True):
        length = kspace.shape[axis]
        kspace = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(kspace, axis), dim=axis, norm="ortho"), axis)
        kspace = kspace.narrow(axis, length // 2 - size // 2, size)
        kspace = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace, axis), dim=axis, norm="ortho"), axis)
    return kspace
