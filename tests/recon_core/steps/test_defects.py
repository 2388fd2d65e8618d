import dataclasses
import math

import numpy as np
import pytest
import torch

from recon_core.data import Receiver
from recon_core.engine import Engine
from recon_core.options import ReconOptions
from recon_core.steps.defects import right_noise
from recon_core.steps.load import load

CPU = torch.device("cpu")


def image_of(cine, method="kt_sense"):
    return Engine("cpu").reconstruct(cine, ReconOptions(method=method, fallback="none"))


def loaded(cine):
    return load(cine, ReconOptions(), CPU)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
@pytest.mark.parametrize("method", ["cg_sense", "kt_sense"])
def test_maps_that_are_no_maps_are_estimated(cine, value, method):
    maps = np.zeros(cine.kspace.shape[1:], np.complex64)
    maps[0, 3, 3] = value
    result, expected = image_of(dataclasses.replace(cine, maps=maps), method), image_of(cine, method)
    assert "zero or not finite: others are estimated" in result.notes[0]
    np.testing.assert_array_equal(result.image, expected.image)


@pytest.mark.parametrize("with_maps", [False, True])
@pytest.mark.parametrize("times", [1000, 5])
def test_a_coil_of_noise_does_not_drown_the_others(cine, smooth_maps, noise, with_maps, times):
    """Its signal is as it was, or of that level as well; what the caller has stays as it is."""
    cine = dataclasses.replace(cine, receiver=Receiver(), maps=smooth_maps(5, 24, 18) if with_maps else None)
    kspace = cine.kspace.copy()
    kspace[:, 2] += times * noise(1)[:, 2] * cine.mask[:, :, None]
    loud = dataclasses.replace(cine, kspace=kspace)
    before = kspace.copy()
    without = np.array([1, 1, 0, 1, 1], np.float32)[:, None, None]
    maps = None if cine.maps is None else cine.maps * without / np.linalg.norm(cine.maps * without, axis=0)
    silent = dataclasses.replace(cine, kspace=cine.kspace * without, maps=maps)
    expected, result = image_of(silent), image_of(loud)
    (note,) = [note for note in result.notes if "weighed down" in note]
    assert note.startswith("coil 2 is weighed down: it has")
    # one coil fewer tells a little less
    assert np.linalg.norm(result.image - expected.image) < 0.15 * np.linalg.norm(expected.image)
    np.testing.assert_array_equal(kspace, before)
    if with_maps:
        np.testing.assert_allclose(np.linalg.norm(result.maps, axis=0), 1, rtol=1e-4)
        np.testing.assert_array_equal(cine.maps, smooth_maps(5, 24, 18))


def test_lines_of_zeros_are_lines_that_were_not_measured(cine):
    """As of a receiver that was blanked; a scan of nothing else stays as it is."""
    kspace = cine.kspace.copy()
    kspace[1], kspace[2, :, 4] = 0, 0
    kspace[3, :, 5, 9] = 0  # one sample of a line that was measured
    result, data = image_of(blanked := dataclasses.replace(cine, kspace=kspace)), loaded(blanked)
    expected = cine.mask.copy()
    expected[1], expected[2, 4] = False, False
    np.testing.assert_array_equal(data.mask.numpy(), expected)
    assert result.notes[0] == "lines that hold only zeros count as not measured: 13, of frames 1, 2"
    np.testing.assert_array_equal(result.image, image_of(dataclasses.replace(blanked, mask=expected)).image)
    assert loaded(dataclasses.replace(cine, kspace=0 * kspace)).mask.all(0).sum() == cine.mask.all(0).sum()


def test_signal_in_the_corners_of_one_coil_is_not_taken_for_noise_that_is_white(cine, noise):
    """As of a small matrix at a high signal-to-noise ratio."""
    kspace = cine.kspace.copy()
    kspace[:, 2] += 5 * noise(1)[:1, 2] * cine.mask[:, :, None]
    data = loaded(dataclasses.replace(cine, kspace=kspace))
    assert not data.notes
    torch.testing.assert_close(data.hybrid[:, :2], loaded(cine).hybrid[:, :2])


def test_coils_of_many_gains_are_left_as_they_are(cine):
    gains = np.array([1, 3, 10, 1, 0.2], np.float32)[:, None, None]
    data = loaded(dataclasses.replace(cine, kspace=cine.kspace * gains, receiver=Receiver()))
    assert not data.notes
    torch.testing.assert_close(data.hybrid, loaded(cine).hybrid * torch.tensor(gains), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("times", [100, 5])
def test_a_coil_of_more_noise_than_is_stated_is_weighed_down(cine, noise, times):
    """Although whitening should have made all alike."""
    kspace = cine.kspace.copy()
    kspace[:, 2] += times * noise(1)[:, 2] * cine.mask[:, :, None]
    without = cine.kspace * np.array([1, 1, 0, 1, 1], np.float32)[:, None, None]
    spoilt, silent = (image_of(dataclasses.replace(cine, kspace=one)) for one in (kspace, without))
    (note,) = spoilt.notes
    assert note.startswith("coil 2 is weighed down: it has")
    assert np.linalg.norm(spoilt.image - silent.image) < 0.15 * np.linalg.norm(silent.image)


@pytest.mark.parametrize("factor", [0.1, 2.0, 4.0, 10.0])
@pytest.mark.parametrize("method", ["cg_sense", "kt_sense", "low_rank_sparse"])
def test_noise_that_is_not_as_stated_is_noted_once_and_made_good_whatever_the_method(cine, factor, method):
    result = image_of(dataclasses.replace(cine, kspace=factor * cine.kspace), method)
    (note,) = [note for note in result.notes if "times the deviation that the noise should have" in note]
    assert note.startswith("what is in the corners of k-space has ")
    right = image_of(cine, method).image
    assert np.linalg.norm(result.image / factor - right) < 0.05 * np.linalg.norm(right)


@pytest.mark.parametrize(
    ("stated", "seen", "believed", "times"),
    [
        (2.0, 1.3, 2.0, None),
        (2.0, 1.5, 4.5, "1.5"),
        (2.0, 9.0, 162.0, "9"),
        (2.0, 0.3, 2.0, None),
        (2.0, 0.1, 0.02, "0.1"),
        (2.0, math.nan, 2.0, None),
        (1e-8, 0.1, 1e-8, None),  # next to nothing beside a signal of 100
        (None, 3.0, None, None),
    ],
)
def test_the_noise_that_is_stated_counts_unless_the_data_contradict_it(cine, stated, seen, believed, times):
    variance, notes = right_noise(dataclasses.replace(loaded(cine), noise_variance=stated), seen, lines=True)
    assert variance == (None if believed is None else pytest.approx(believed))
    assert [f"has {times} times the deviation" in note for note in notes] == ([True] if times else [])


@pytest.mark.parametrize(("lines", "believed"), [(True, 50.0), (False, 2.0)])
def test_of_samples_that_are_not_lines_more_may_be_signal(cine, lines, believed):
    data = dataclasses.replace(loaded(cine), noise_variance=2.0)
    assert right_noise(data, 5.0, lines=lines)[0] == pytest.approx(believed)


def test_noise_as_stated_or_not_stated_is_not_noted(cine):
    for scan in (cine, dataclasses.replace(cine, receiver=Receiver())):
        assert not loaded(scan).notes
