import dataclasses

import numpy as np
import pytest
import torch

from recon_core.coils.joint import joint_maps
from recon_core.data import CineSlice, Receiver
from recon_core.options import ReconOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.kspace import simulate_cine
from recon_core.simulate.sampling import sampling_mask
from recon_core.steps.load import load
from recon_core.steps.still_maps import still_maps


def whitened(scan, coils):
    """Coils ``(..., coil, y, x)`` of a scan with noise of unit deviation."""
    white = np.linalg.inv(np.linalg.cholesky(scan.noise_covariance / 2))
    return np.einsum("ij,...jyx->...iyx", white, coils).astype(np.complex64)


def slice_and_truth(**changes):
    """A slice and the true maps ``(coil, y, x)``, both of whitened coils."""
    scan = simulate_cine(
        **{"frames": 10, "matrix": (72, 80), "coils": 6, "acceleration": 8, "snr": 300.0, "seed": 3} | changes
    )
    maps = whitened(scan, scan.coil_maps)
    seen = np.linalg.norm(maps * np.abs(scan.image).mean(0), axis=0)
    return CineSlice(whitened(scan, scan.kspace), scan.mask, receiver=Receiver(whitened=True)), maps, seen


def away(maps, truth, seen):
    """How far maps are from the true ones: the sine of the angle between them, mean over the tissue."""
    truth = truth / np.linalg.norm(truth, axis=0)
    along = np.abs((np.asarray(maps).conj() * truth).sum(0)).clip(0, 1)
    return float((np.sqrt(1 - along**2) * seen).sum() / seen.sum())


def loaded(cine, **options):
    return load(cine, ReconOptions.of(**options), torch.device("cpu"))


@pytest.mark.parametrize(
    "changes", [{}, {"seed": 4}, {"acceleration": 4, "frames": 6}, {"sampling": "variable_density"}]
)
def test_maps_are_nearer_to_the_truth_where_each_line_is_of_few_frames(changes):
    cine, truth, seen = slice_and_truth(**changes)
    data = loaded(cine)
    before, _ = joint_maps(data.reference, data.measured)
    assert away(data.maps, truth, seen) < 0.9 * away(before, truth, seen)


def folded(lines):
    """A slice with shifting lines of a body that is 96 pixels long, in a field of view of so many lines."""
    scan = simulate_cine(frames=12, matrix=(96, 64), coils=6, sampling="full", snr=300.0, seed=3)
    images = ifft(torch.from_numpy(whitened(scan, scan.kspace)), (-2, -1)).numpy()
    over = (96 - lines) // 2
    inside = images[:, :, over : over + lines].copy()
    if over:
        inside[:, :, -over:] += images[:, :, :over]
        inside[:, :, :over] += images[:, :, -over:]
    mask = sampling_mask("interleaved", 12, lines, acceleration=4)
    kspace = fft(torch.from_numpy(inside), (-2, -1)).numpy() * mask[:, None, :, None]
    return CineSlice(kspace, mask, receiver=Receiver(whitened=True))


@pytest.mark.parametrize(("lines", "again"), [(96, True), (64, False)])
def test_maps_that_cannot_explain_a_body_that_folds_are_left_alone(lines, again):
    # what they leave unexplained comes and goes with the lines and seems to move
    data = loaded(folded(lines))
    before, _ = joint_maps(data.reference, data.measured)
    assert torch.equal(data.maps, before) is not again


def without_motion(cine):
    """The same slice with the same lines in every frame."""
    mask = np.broadcast_to(cine.mask[:1], cine.mask.shape).copy()
    return dataclasses.replace(cine, mask=mask, kspace=np.where(mask[:, None, :, None], cine.kspace, np.complex64(0)))


@pytest.mark.parametrize("kind", ["same lines", "one frame", "complete", "not finite", "zero"])
def test_there_is_nothing_to_take_off_where_motion_cannot_matter(kind):
    cine, _, _ = slice_and_truth()
    data = loaded(cine)
    if kind == "same lines":
        data = loaded(without_motion(cine))
    elif kind == "one frame":
        data = data.select(slice(0, 1))
    elif kind == "complete":
        data = dataclasses.replace(data, mask=torch.ones_like(data.mask))
    elif kind == "not finite":
        data.reference[0, 0, 0] = torch.nan
    else:
        data = dataclasses.replace(data, hybrid=0 * data.hybrid, reference=0 * data.reference)
    assert still_maps(data, "torch") is None


def test_values_that_are_too_large_leave_the_maps(monkeypatch):
    monkeypatch.setattr(
        "recon_core.steps.still_maps.KtSense.__call__", lambda _, data: torch.full_like(data.hybrid[:, 0], torch.nan)
    )
    data = loaded(slice_and_truth()[0])
    assert torch.equal(data.maps, joint_maps(data.reference, data.measured)[0])


def test_empty_frames_change_nothing():
    cine, truth, seen = slice_and_truth()
    mask = cine.mask.copy()
    mask[4] = False
    data = loaded(dataclasses.replace(cine, mask=mask, kspace=cine.kspace * mask[:, None, :, None]))
    before, _ = joint_maps(data.reference, data.measured)
    assert away(data.maps, truth, seen) < 0.9 * away(before, truth, seen)


@pytest.mark.parametrize("given", ["maps", "calibration", "walsh"])
def test_maps_that_do_not_come_from_the_average_stay(given, monkeypatch):
    def never(*_):
        pytest.fail("maps were estimated again")

    monkeypatch.setattr("recon_core.steps.load.still_maps", never)
    cine, truth, _ = slice_and_truth()
    if given == "maps":
        loaded(dataclasses.replace(cine, maps=truth))
    elif given == "calibration":
        loaded(dataclasses.replace(cine, calibration=cine.kspace.sum(0)))
    else:
        loaded(cine, maps="walsh")
