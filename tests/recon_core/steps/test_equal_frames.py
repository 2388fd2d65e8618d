import dataclasses

import numpy as np
import pytest
import torch

from recon_core.coils.calibration import time_average
from recon_core.engine import Engine
from recon_core.options import ReconOptions
from recon_core.steps.equal_frames import frame_factors
from recon_core.steps.load import load


def image_of(cine, method):
    return Engine("cpu").reconstruct(cine, ReconOptions(method=method, fallback="none"))


def loaded(cine):
    return load(cine, ReconOptions(), torch.device("cpu"))


@pytest.mark.parametrize("empty", [(), (2,)])
@pytest.mark.parametrize("phase", [np.pi, 2.6, 0.6])
def test_frames_of_other_phases_are_turned_to_one(phase, empty):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 16, 5, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(6, 16, dtype=torch.bool)
    mask[:, ::4] = mask[:, 6:10] = True
    mask[list(empty)] = False
    turns = torch.polar(torch.ones(6), phase * (torch.arange(6) % 2))
    kspace = truth * turns[:, None, None, None] * mask[:, None, :, None]
    factors = frame_factors(kspace, mask)
    average, measured = time_average(kspace * factors[:, None, None, None], mask)
    ratio = average[:, measured] / truth[:, measured]
    torch.testing.assert_close(ratio, ratio[0, 0, 0].expand_as(ratio))
    assert abs(complex(ratio[0, 0, 0])) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("bright", "expected"),
    [
        ([3, 1.2, 1, 1, 1, 0.2], [1 / 3, 1, 1, 1, 1, 1]),
        ([3, 3, 3, 1, 1, 1], None),  # as with a contrast agent
        ([30, 1, 1, 1, 1, 1], None),
        ([1, 0, 0, 0, 0, 0], None),
    ],
)
def test_few_frames_that_are_much_brighter_are_made_as_bright_as_the_others(bright, expected):
    generator = torch.Generator().manual_seed(0)
    kspace = (
        torch.randn(3, 16, 5, dtype=torch.complex64, generator=generator) * torch.tensor(bright)[:, None, None, None]
    )
    factors = frame_factors(kspace, torch.ones(6, 16, dtype=torch.bool))
    if expected is None:
        assert factors is None
    else:
        torch.testing.assert_close(factors, torch.tensor(expected, dtype=torch.complex64))


@pytest.mark.parametrize("kind", ["alike", "noise", "zero", "no line in common", "one frame", "not finite"])
def test_other_frames_are_left_as_they_are(kind):
    generator = torch.Generator().manual_seed(0)
    kspace = torch.randn(6, 3, 16, 5, dtype=torch.complex64, generator=generator)
    mask = torch.ones(6, 16, dtype=torch.bool)
    if kind != "noise":
        kspace = 0.3 * kspace + kspace[:1] * (-1) ** torch.arange(6)[:, None, None, None]
    if kind == "alike":
        kspace *= (-1) ** torch.arange(6)[:, None, None, None]
    if kind == "not finite":
        kspace[2, 1, 8, 2] = np.nan
    if kind == "zero":
        kspace.zero_()
    if kind == "no line in common":
        mask = torch.arange(16) % 6 == torch.arange(6)[:, None]
    if kind == "one frame":
        mask[1:] = False
    assert frame_factors(kspace * mask[:, None, :, None], mask) is None


def test_frames_of_alternating_phase_give_the_maps_of_frames_of_one(cine, noise):
    whole = dataclasses.replace(
        cine, mask=np.ones_like(cine.mask), kspace=cine.kspace[:1] + cine.kspace[1:2] + noise(2)
    )
    turned = dataclasses.replace(whole, kspace=whole.kspace * np.float32([1, -1, 1, -1])[:, None, None, None])
    data = loaded(turned)
    torch.testing.assert_close(data.maps, loaded(whole).maps, rtol=1e-3, atol=1e-3)
    assert data.notes[0].startswith("the phase of whole frames differs: they are turned to one phase")


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "kt_sense", "low_rank_sparse"])
@pytest.mark.parametrize("step", [0.4, 2.0, np.pi])
def test_a_phase_that_drifts_over_the_frames_changes_nothing_but_that(cine, method, step):
    kspace, mask = cine.kspace.copy(), cine.mask | (np.arange(24) == 12)
    kspace[1::2, :, 12] = kspace[0, :, 12]  # a line in common
    whole = dataclasses.replace(cine, mask=mask, kspace=kspace)
    drift = np.exp(1j * step * np.arange(len(mask))).astype(np.complex64)[:, None, None]
    image = image_of(dataclasses.replace(whole, kspace=whole.kspace * drift[:, None]), method).image
    expected = drift * image_of(whole, method).image
    assert np.linalg.norm(image - expected) < 0.02 * np.linalg.norm(expected)


def test_a_phase_that_hardly_drifts_is_left(cine):
    """As motion gives it to all of an image."""
    drift = np.exp(0.1j * np.arange(len(cine.mask))).astype(np.complex64)[:, None, None, None]
    data = loaded(dataclasses.replace(cine, kspace=cine.kspace * drift))
    assert (data.factors, data.notes) == (None, [])


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "kt_sense", "low_rank_sparse"])
def test_a_first_frame_that_is_much_brighter_comes_out_so(cine, method):
    """As on the way to the steady state."""
    kspace, mask = cine.kspace.copy(), cine.mask | (np.arange(24) == 12)
    kspace[1::2, :, 12] = kspace[0, :, 12]
    whole = dataclasses.replace(cine, mask=mask, kspace=kspace)
    kspace = kspace.copy()
    kspace[0] *= 3
    result = image_of(dataclasses.replace(whole, kspace=kspace), method)
    expected = image_of(whole, method).image * np.float32([3, 1, 1, 1])[:, None, None]
    assert np.linalg.norm(result.image - expected) < 0.02 * np.linalg.norm(expected)
    assert "frames much brighter than most are reconstructed as bright as these: 0" in result.notes
