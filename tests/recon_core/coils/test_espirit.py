import numpy as np
import pytest
import torch

from recon_core.coils import espirit as module
from recon_core.coils.calibration import time_average
from recon_core.coils.espirit import espirit_maps
from recon_core.errors import DataError
from recon_core.physics.fourier import fft, ifft


def correlation(maps, truth):
    norms = torch.linalg.vector_norm(maps, dim=0) * torch.linalg.vector_norm(truth, dim=0)
    return (maps.conj() * truth).sum(0).abs() / norms.clamp(min=1e-12)


def noise(*shape, seed=1):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def all_lines(n_lines):
    return torch.ones(n_lines, dtype=torch.bool)


def central(n_lines, n_central):
    measured = torch.zeros(n_lines, dtype=torch.bool)
    measured[n_lines // 2 - n_central // 2 : n_lines // 2 + n_central - n_central // 2] = True
    return measured


@pytest.fixture
def scan(smooth_maps, disc):
    """A function that makes maps, image and hybrid data with a trace of noise."""

    def make(n_coils=6, n_y=48, n_x=40, noise_level=1e-3):
        maps, image = torch.tensor(smooth_maps(n_coils, n_y, n_x)), torch.tensor(disc(n_y, n_x))
        return maps, image, fft(maps * image, (1,)) + noise_level * noise(n_coils, n_y, n_x)

    return make


def in_every_pixel(monkeypatch, *arguments, **settings):
    """The definition: an eigendecomposition in every pixel, no interpolation."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_OVERSAMPLING", 1000)
        return espirit_maps(*arguments, **settings)


# --- against BART -----------------------------------------------------------------------------------------------------


def compare_with_golden(maps, eigenvalues, golden_maps, golden_values, inside):
    maps, golden_maps = maps[0, : len(golden_maps)], torch.tensor(golden_maps)
    similar = correlation(maps, golden_maps)[inside]
    assert similar.mean() >= 0.9999
    assert similar.min() >= 0.999
    assert (eigenvalues[0] - torch.tensor(golden_values))[inside].abs().max() < 0.005
    supports = [float((one.abs().sum(0) > 0).float().mean()) for one in (maps, golden_maps)]
    assert supports[0] == pytest.approx(supports[1], rel=0.03)
    # The phase reference is the same, up to one constant.
    angle = (golden_maps.conj() * maps).sum(0)[inside]
    assert (angle * angle.mean().conj()).angle().abs().max() < 0.05


@pytest.fixture
def inside(golden):
    strength = torch.tensor(np.abs(golden("case_phantom")["truth"]).mean(0))
    return strength > 0.05 * strength.max()


def test_golden_time_average(golden, phantom_kspace, inside):
    mask = torch.tensor(golden("case_phantom")["mask_shift"].astype(bool))
    lines, measured = time_average(ifft(torch.tensor(phantom_kspace), (-1,)), mask)
    maps, eigenvalues, notes = espirit_maps(lines, measured)
    expected = golden("case_maps_bart")
    assert maps.shape == (1, 8, 96, 128)
    assert not notes
    compare_with_golden(maps, eigenvalues, expected["ecalib_tavg"], expected["ecalib_tavg_ev"], inside)


def test_golden_central_lines_of_one_frame(golden, phantom_kspace, inside):
    """The pattern has 24 central lines, and every 4th outside; of the 8 maps 4 are stored."""
    measured = torch.tensor(golden("case_phantom")["mask_fixed"][0].astype(bool))
    maps, eigenvalues, _ = espirit_maps(ifft(torch.tensor(phantom_kspace[0]), (-1,)) * measured[:, None], measured)
    expected = golden("case_maps_bart")
    compare_with_golden(maps, eigenvalues, expected["ecalib_fixed0"], expected["ecalib_fixed0_ev"], inside)


# --- what the maps are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_y", "n_x"), [(48, 40), (47, 41), (96, 130)])
@pytest.mark.parametrize("n_central", [20, None])
def test_finds_the_maps(scan, n_y, n_x, n_central):
    truth, image, lines = scan(6, n_y, n_x)
    measured = central(n_y, n_central or n_y)
    maps, eigenvalues, notes = espirit_maps(lines * measured[:, None], measured)
    inside = image.abs() > 0.1
    assert not notes
    assert correlation(maps[0], truth)[inside].mean() > 0.999
    assert correlation(maps[0], truth)[inside].min() > 0.95
    assert eigenvalues[0][inside].min() > 0.8
    norm = torch.linalg.vector_norm(maps[0], dim=0)
    supported = eigenvalues[0] > 0.8
    torch.testing.assert_close(norm, supported.float())
    assert supported.float().mean() < 0.9  # the dark surround has no maps


def test_transfer_matrix_is_the_projection(scan):
    """By hand: project all patches of a k-space onto the signal space, average where they overlap, periodically."""
    _, _, lines = scan(3, 12, 12)
    kspace = fft(lines, (2,))
    kernels = module._signal_space(kspace, 3, 0.01)
    space = kernels.reshape(27, -1)
    torch.testing.assert_close(space.mH @ space, torch.eye(space.shape[1], dtype=space.dtype), atol=1e-4, rtol=0)
    other = noise(3, 12, 12, seed=2)
    expected = torch.zeros_like(other)
    for y in range(12):
        for x in range(12):
            rows, columns = (torch.arange(start, start + 3) % 12 for start in (y, x))
            patch = other[:, rows[:, None], columns].reshape(27)
            expected[:, rows[:, None], columns] += (space @ (space.mH @ patch)).reshape(3, 3, 3) / 9
    transfer = module._transfer_function(kernels)
    weight = module._trigonometric(module._positions(12), 5).float()
    matrices = torch.einsum("ya,xb,abcd->yxcd", weight + 0j, weight + 0j, transfer)
    image = torch.einsum("yxcd,dyx->cyx", matrices, ifft(other, (1, 2)))
    torch.testing.assert_close(fft(image, (1, 2)), expected, atol=1e-4, rtol=1e-3)


def test_phase_of_the_virtual_body_coil_is_zero(scan):
    _, image, lines = scan()
    maps, _, _ = espirit_maps(lines, all_lines(48), calibration=24)
    block = fft(lines, (2,))[:, 12:36, 8:32].flatten(1)
    reference = torch.linalg.eigh(block @ block.mH).eigenvectors[:, -1]
    seen = (reference.conj()[:, None, None] * maps[0]).sum(0)
    angle = seen[image.abs() > 0.1].angle()
    assert (angle - angle.mean()).abs().max() < 1e-2


@pytest.mark.parametrize("settings", [{}, {"soft": True}, {"kernel": 5, "crop": 0.7}, {"sets": 2}])
def test_interpolation_agrees_with_every_pixel(scan, monkeypatch, settings):
    _, image, lines = scan(6, 96, 130)
    measured = all_lines(96)
    maps, eigenvalues, _ = espirit_maps(lines, measured, **settings)
    exact, exact_values, _ = in_every_pixel(monkeypatch, lines, measured, **settings)
    inside = image.abs() > 0.1
    difference = torch.linalg.vector_norm(maps[0] - exact[0], dim=0)
    assert difference[inside].max() < 5e-3
    assert (eigenvalues[0] - exact_values[0])[inside].abs().max() < 2e-3
    assert ((torch.linalg.vector_norm(exact, dim=1) > 0) != (torch.linalg.vector_norm(maps, dim=1) > 0)).sum() < 30


def test_interpolation_survives_a_zero_of_the_reference(monkeypatch, disc):
    """Where the reference combination of coils sees nothing, the phase of the maps winds around a point."""
    n_y, n_x = 100, 120
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, n_x), indexing="ij")
    truth = torch.stack([2 * torch.complex(x, y), torch.ones(n_y, n_x) + 0j])
    truth = truth / torch.linalg.vector_norm(truth, dim=0)
    image = torch.tensor(disc(n_y, n_x)) * (0.02 + x**2 + y**2)  # bright where the winding coil sees
    lines = fft(truth * image, (1,)) + 1e-4 * noise(2, n_y, n_x)
    maps, _, _ = espirit_maps(lines, all_lines(n_y))
    exact, _, _ = in_every_pixel(monkeypatch, lines, all_lines(n_y))
    near = (x**2 + y**2) < 0.1
    assert exact[0, 0][near].abs().min() < 0.1  # the zero is there
    assert correlation(maps[0], exact[0])[near].min() > 0.999


@pytest.mark.parametrize(("n_pixels", "n_points"), [(96, 44), (131, 44), (204, 45), (30, 30), (31, 31)])
def test_cubic_interpolation(n_pixels, n_points):
    """A smooth periodic field, known on the coarse grid, is nearly known on the fine one; both are centred."""
    weight = module._cubic(n_pixels, n_points)
    turns = torch.arange(4)
    coarse, fine = (
        torch.exp(2j * torch.pi * module._positions(size)[:, None] * turns) for size in (n_points, n_pixels)
    )
    error = (weight.to(coarse) @ coarse - fine).abs().amax(0)
    assert error[0] < 1e-6
    assert error.max() < 0.02
    if n_pixels == n_points:
        assert error.max() < 1e-6


def test_few_pixels_are_solved_on_their_own(scan, monkeypatch):
    _, _, lines = scan(6, 96, 130)
    solved, solve = [], module._eigen
    monkeypatch.setattr(module, "_eigen", lambda *arguments: solved.append(len(arguments[1])) or solve(*arguments))
    espirit_maps(lines, all_lines(96))
    assert solved[0] == 44 * 44
    assert sum(solved[1:]) < 0.05 * 96 * 130


def test_soft_weights(scan):
    _, image, lines = scan()
    hard, _, _ = espirit_maps(lines, all_lines(48), crop=0.8)
    soft, eigenvalues, _ = espirit_maps(lines, all_lines(48), crop=0.8, soft=True)
    norm = torch.linalg.vector_norm(soft[0], dim=0)
    assert not norm[eigenvalues[0] < 0.599].any()
    middle = (eigenvalues[0] - 0.8).abs() < 0.02
    assert middle.any()
    assert (norm[middle] - 0.5).abs().max() < 0.1
    order = eigenvalues[0].flatten().argsort()
    assert (norm.flatten()[order].diff() > -1e-5).all()  # grows with the eigenvalue
    inside = image.abs() > 0.1
    assert correlation(hard[0], soft[0])[inside].min() > 0.9999


def test_folded_tissue_needs_two_sets(scan):
    truth, image, _ = scan(8, 96, 60)
    # Two smooth tissues would add up to one smooth one, which needs no second set of maps.
    image = image * noise(96, 60, seed=3)
    folded_truth, folded_image = truth.unflatten(1, (2, 48)), image.unflatten(0, (2, 48))
    coil_images = (folded_truth * folded_image).sum(1)
    folded = fft(coil_images, (1,)) + 1e-3 * noise(8, 48, 60)
    maps, eigenvalues, notes = espirit_maps(folded, all_lines(48), sets=2)
    assert not notes
    assert (eigenvalues[0] >= eigenvalues[1]).all()
    both = (folded_image.abs() > 0).all(0)
    assert eigenvalues[1][both].mean() > 0.8
    # Both sets together hold what one set does not.
    held = [
        sum((one * (one.conj() * coil_images).sum(0))[:, both] for one in some) - coil_images[:, both]
        for some in (maps[:1], maps)
    ]
    one, two = (torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(coil_images[:, both]) for rest in held)
    assert one > 0.2
    assert two < 0.1
    with pytest.raises(DataError, match="folds"):
        espirit_maps(folded, all_lines(48))


# --- any data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_any_unit(scan, scale):
    _, _, lines = scan()
    expected, _, _ = espirit_maps(lines, all_lines(48))
    maps, _, _ = espirit_maps(lines * scale, all_lines(48))
    torch.testing.assert_close(maps, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("n_coils", [1, 2, 16])
def test_number_of_coils(scan, n_coils):
    truth, image, lines = scan(n_coils)
    maps, _, _ = espirit_maps(lines, all_lines(48))
    inside = image.abs() > 0.1
    assert correlation(maps[0], truth)[inside].min() > 0.95
    with pytest.raises(DataError, match="as many sets"):
        espirit_maps(lines, all_lines(48), sets=n_coils + 1)


def test_a_coil_of_zeros_and_a_coil_twice(scan):
    truth, image, lines = scan()
    more = torch.cat([lines, torch.zeros_like(lines[:1]), lines[:1]])
    maps, _, _ = espirit_maps(more, all_lines(48))
    truth = torch.cat([truth, torch.zeros_like(truth[:1]), truth[:1]])
    assert correlation(maps[0], truth)[image.abs() > 0.1].mean() > 0.999
    assert not maps[0, 6].abs().max() > 1e-5
    torch.testing.assert_close(maps[0, 7], maps[0, 0], atol=1e-4, rtol=0)


def test_partial_fourier_uses_the_lines_of_one_side(scan):
    truth, image, lines = scan()
    measured = all_lines(48)
    measured[:18] = False
    block = module._calibration_block(lines * measured[:, None], measured, 6, 24)
    assert block.shape == (6, 24, 24)
    maps, _, _ = espirit_maps(lines * measured[:, None], measured)
    assert correlation(maps[0], truth)[image.abs() > 0.1].mean() > 0.999


def test_asymmetric_echo_is_not_taken_for_data(scan):
    """Samples that were never measured come back from a transform as nearly zero, and are no calibration data."""
    _, _, lines = scan()
    kspace = fft(lines, (2,))
    kspace[:, :, :12] = 0
    block = module._calibration_block(ifft(kspace, (2,)), all_lines(48), 6, 24)
    assert block.shape == (6, 24, 24)
    torch.testing.assert_close(block, (kspace / kspace.abs().amax())[:, 12:36, 12:36], atol=1e-5, rtol=0)
    kspace[:, :, :18] = 0
    assert module._calibration_block(ifft(kspace, (2,)), all_lines(48), 6, 24).shape == (6, 24, 22)


@pytest.mark.parametrize(
    ("n_lines", "present", "limit", "expected"),
    [
        (96, range(96), 24, (36, 60)),
        (96, range(36, 60), 24, (36, 60)),
        (97, range(97), 24, (36, 60)),
        (96, range(40, 96), 24, (40, 64)),
        (96, range(52), 24, (28, 52)),
        (16, range(16), 24, (0, 16)),
        (16, [0, 4, 7, 8, 9, 12], 24, (7, 10)),
        (16, [0, 4, 7, 9, 12], 24, (9, 9)),
        (16, [], 24, (9, 9)),
    ],
)
def test_central_run(n_lines, present, limit, expected):
    flags = torch.zeros(n_lines, dtype=torch.bool)
    flags[list(present)] = True
    run = module._central_run(flags, limit)
    assert run.stop - run.start == expected[1] - expected[0]
    if run.stop > run.start:
        assert (run.start, run.stop) == expected


# --- no map rather than a wrong one -----------------------------------------------------------------------------------


def test_too_few_lines_for_the_kernel(scan):
    _, _, lines = scan()
    with pytest.raises(DataError, match=r"at least 6 adjacent measured lines .* found 5; choose Walsh"):
        espirit_maps(lines, central(48, 5))
    regular = torch.zeros(48, dtype=torch.bool)
    regular[::2] = True
    with pytest.raises(DataError, match="found 1; choose Walsh"):
        espirit_maps(lines * regular[:, None], regular)


@pytest.mark.parametrize("n_central", [6, 7, 8])
def test_too_few_lines_for_the_content(scan, n_central):
    """Every patch is new, or the maps have holes."""
    _, _, lines = scan(8, 96, 80)
    measured = central(96, n_central)
    with pytest.raises(DataError, match=r"too (small|few).*choose Walsh"):
        espirit_maps(lines * measured[:, None], measured)


def test_few_lines_are_noted_or_good(scan):
    truth, image, lines = scan(8, 96, 80)
    for n_central in range(9, 20):
        measured = central(96, n_central)
        try:
            maps, _, notes = espirit_maps(lines * measured[:, None], measured)
        except DataError:
            continue
        mean = correlation(maps[0], truth)[image.abs() > 0.1].mean()
        assert mean > (0.97 if notes else 0.995)


@pytest.mark.parametrize(
    "lines", [torch.zeros(4, 32, 32, dtype=torch.complex64), torch.full((4, 32, 32), torch.nan + 0j)]
)
def test_no_signal(lines):
    with pytest.raises(DataError, match=r"only zeros|not finite"):
        espirit_maps(lines, all_lines(32))


def test_noise_gives_no_maps():
    for n_coils in (2, 4, 8):
        with pytest.raises(DataError, match=r"noisy|explain|too small"):
            espirit_maps(noise(n_coils, 48, 40), all_lines(48))


def test_no_eigenvalue_above_the_crop(scan):
    _, _, lines = scan()
    with pytest.raises(DataError, match=r"explain 0\.0%"):
        espirit_maps(lines, all_lines(48), crop=0.99999)


def test_same_data_same_maps(scan):
    _, _, lines = scan()
    first, second = (espirit_maps(lines, all_lines(48))[0] for _ in range(2))
    assert torch.equal(first, second)
