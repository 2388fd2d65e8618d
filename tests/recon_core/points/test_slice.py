import numpy as np
import pytest
import torch

from recon_core import reconstruct
from recon_core.api import ReconstructionWarning
from recon_core.data import HybridSlice
from recon_core.errors import DataError
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.memory import predicted_bytes
from recon_core.physics.sense import PlaneSenseOperator, SenseOperator
from recon_core.points.slice import PointSenseOperator, average_of_points, reference_of_points, with_points
from recon_core.simulate.kspace import simulate_cine
from recon_core.simulate.sampling import pseudo_radial_mask
from recon_core.trust.ranges import Sampling, TrainingRange
from tests.recon_core.support import peak_bytes

FRAMES, COILS, LINES, SAMPLES = 3, 2, 12, 10


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def operator(per_frame=False):
    maps = random(*((FRAMES,) if per_frame else ()), COILS, LINES, SAMPLES)
    points = torch.from_numpy(pseudo_radial_mask(FRAMES, LINES, SAMPLES, 3))
    return PointSenseOperator(maps, points), maps, points


@pytest.mark.parametrize("per_frame", [False, True])
def test_operator_is_the_plane_form_behind_a_transform(per_frame):
    ours, maps, points = operator(per_frame)
    plane = PlaneSenseOperator(maps, points)
    image, hybrid = random(FRAMES, LINES, SAMPLES, seed=1), random(FRAMES, COILS, LINES, SAMPLES, seed=2)
    torch.testing.assert_close(fft(ours.forward(image), (-1,)), plane.forward(image))
    torch.testing.assert_close(ours.adjoint(hybrid), plane.adjoint(fft(hybrid, (-1,))))
    torch.testing.assert_close(ours.normal(image), plane.normal(image))
    part = ours.select(slice(1, 3))
    torch.testing.assert_close(part.normal(image[1:]), plane.normal(image)[1:])


def test_with_points_of_whole_lines_it_is_the_operator_of_lines():
    mask = torch.arange(LINES) % 2 == torch.arange(FRAMES)[:, None] % 2
    maps = random(COILS, LINES, SAMPLES)
    ours = PointSenseOperator(maps, mask[..., None].expand(-1, -1, SAMPLES))
    lines = SenseOperator(maps, mask)
    image = random(FRAMES, LINES, SAMPLES, seed=1)
    torch.testing.assert_close(ours.forward(image), lines.forward(image))
    torch.testing.assert_close(ours.normal(image), lines.normal(image))


def test_operator_can_be_differentiated():
    ours, _, _ = operator()
    image = random(FRAMES, LINES, SAMPLES, seed=1).requires_grad_()
    value = ours.forward(image).abs().square().sum()
    value.backward()
    torch.testing.assert_close(image.grad, 2 * ours.normal(image.detach()))


def test_average_of_points_is_the_mean_of_those_that_were_measured():
    points = torch.from_numpy(pseudo_radial_mask(FRAMES, LINES, SAMPLES, 4))
    kspace = random(FRAMES, COILS, LINES, SAMPLES) * points[:, None]
    average, measured = average_of_points(kspace, points)
    for row in range(LINES):
        for column in range(SAMPLES):
            values = [kspace[frame, 0, row, column] for frame in range(FRAMES) if points[frame, row, column]]
            assert bool(measured[row, column]) == bool(values)
            expected = sum(values) / len(values) if values else torch.zeros((), dtype=torch.complex64)
            torch.testing.assert_close(average[0, row, column], expected)


def test_reference_of_a_mask_that_stands_still_is_its_centre():
    points = torch.from_numpy(pseudo_radial_mask(1, 64, 64, 24)).expand(4, -1, -1)
    kspace = random(4, COILS, 64, 64) * points[:, None]
    reference, measured = reference_of_points(kspace, points)
    lines = measured.nonzero().flatten()
    assert 12 < len(lines) < 40
    held = fft(reference, (-1,)).abs().sum(0) > 1e-4
    assert not bool(held[:, :10].any())
    assert not bool(held[~measured].any())
    everywhere = torch.ones(4, 64, 64, dtype=torch.bool)
    whole = random(4, COILS, 64, 64)
    reference, measured = reference_of_points(whole, everywhere)
    assert bool(measured.all())
    torch.testing.assert_close(reference, ifft(whole.mean(0), (-1,)))


@pytest.fixture(scope="module")
def scan():
    return simulate_cine(frames=8, matrix=(48, 48), coils=4, sampling="full")


POINTS = pseudo_radial_mask(8, 48, 48, 10)


def error(image, truth):
    image, truth = np.abs(image), np.abs(truth)
    scale = (image * truth).sum() / np.square(image).sum()
    return np.linalg.norm(scale * image - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize(("method", "most"), [("cg_sense", 0.6), ("low_rank_sparse", 0.4), ("kt_sense", 0.3)])
def test_every_method_is_better_than_zero_filling(method, most, scan):
    given = {"noise_covariance": scan.noise_covariance, "mask": POINTS}
    plain = error(reconstruct(scan.kspace, "zero_filled", **given).image, scan.image)
    result = reconstruct(scan.kspace, method, **given, fallback="none")
    assert error(result.image, scan.image) < most * plain
    assert any("a mask of points" in note for note in result.notes)


def test_the_mask_is_found_from_the_zeros(scan):
    given = reconstruct(scan.kspace, "zero_filled", mask=POINTS)
    found = reconstruct(scan.kspace * POINTS[:, None], "zero_filled")
    np.testing.assert_array_equal(given.image, found.image)
    same = reconstruct(scan.kspace, "zero_filled", mask=POINTS[:1])
    assert np.abs(same.image - given.image).max() > 0


def test_grappa_goes_to_the_fallback(scan):
    with pytest.warns(ReconstructionWarning, match="grappa needs whole lines"):
        result = reconstruct(scan.kspace, "grappa", mask=POINTS, fallback="zero_filled")
    assert result.method == "zero_filled"
    with pytest.raises(DataError, match="whole lines"):
        reconstruct(scan.kspace, "promptmr", mask=POINTS, fallback="none")


def test_wrong_masks_are_refused(scan):
    with pytest.raises(DataError, match="of points"):
        reconstruct(scan.kspace, mask=POINTS[:3])
    with pytest.raises(DataError, match="0 and 1"):
        reconstruct(scan.kspace, mask=2 * POINTS.astype(int))


def test_snr_units_and_g_factor_are_not_made(scan):
    result = reconstruct(scan.kspace, "zero_filled", mask=POINTS, units="snr", g_factor=True)
    assert result.units == "relative"
    assert result.g_factor is None
    assert "mask of points is not known" in " ".join(result.notes)


def test_ranges_know_points():
    found = Sampling.of(POINTS, 4, 48)
    assert found.pattern == "points"
    assert found.acceleration == pytest.approx(1 / POINTS.mean())
    assert TrainingRange(patterns=("random",)).outside(found) == ["points pattern, trained for random"]
    assert TrainingRange(patterns=("points",)).outside(found) == []


def test_consistency_of_networks_is_that_of_lines_where_the_lines_are_whole():
    mask = torch.arange(LINES) % 2 == torch.arange(FRAMES)[:, None] % 2
    maps, reference = random(COILS, LINES, SAMPLES), random(COILS, LINES, SAMPLES, seed=3)
    hybrid = random(FRAMES, COILS, LINES, SAMPLES, seed=2) * mask[:, None, :, None]
    lines = HybridSlice(hybrid, mask, maps, reference, mask.any(0))
    points = with_points(lines, mask[..., None].expand(-1, -1, SAMPLES))
    image = random(FRAMES, LINES, SAMPLES, seed=1)
    for ours, theirs in (
        (points.consistency(), lines.consistency()),
        (points.select(slice(1, 3)).consistency(), lines.select(slice(1, 3)).consistency()),
    ):
        some = image[-len(ours.zero_filled) :]
        torch.testing.assert_close(ours.zero_filled, theirs.zero_filled)
        torch.testing.assert_close(ours.hard(some), theirs.hard(some))
        torch.testing.assert_close(ours.solve(some, 0.1, 3), theirs.solve(some, 0.1, 3))


def test_consistency_of_networks_takes_the_memory_that_they_reckon_with():
    shape = (24, 10, 64, 96)
    mask = torch.ones(24, 64, dtype=torch.bool)
    lines = HybridSlice(random(*shape), mask, random(*shape[1:]), random(*shape[1:]), mask[0])
    points = with_points(lines, torch.from_numpy(pseudo_radial_mask(24, 64, 96, 12)))
    image = random(24, 64, 96)
    with torch.inference_mode():
        taken = peak_bytes(lambda: points.consistency().hard(image))
    assert taken < 1.1 * predicted_bytes("consistency", shape)
