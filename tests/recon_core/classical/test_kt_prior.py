import pytest
import torch

from recon_core.classical.kt_prior import KtPrior, first_prior, next_prior

PLANE = (6, 7)
PIXELS = 42


def noise(*shape, seed=0):
    """Real and imaginary parts (n, part, pixel)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brightness(value=1.0):
    return torch.full(PLANE, value, dtype=torch.complex64)


def priors(frames, sampled=0.25):
    """The first prior, and two that follow from series."""
    first = first_prior(brightness(), frames)
    second = next_prior(first, noise(frames, 2, PIXELS, seed=1), PLANE, sampled)
    return first, second, next_prior(second, noise(frames, 2, PIXELS, seed=2), PLANE, sampled)


@pytest.mark.parametrize("frames", [1, 2, 7, 24])
def test_both_bases_are_orthonormal(frames):
    for prior in priors(frames):
        for basis in (prior.basis[:frames], prior.basis[frames:]):
            torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), atol=1e-5, rtol=0)


def test_synthesis_is_the_adjoint_of_analysis():
    prior = priors(9)[1]
    series, components = noise(9, 2, PIXELS, seed=3), noise(len(prior.basis), 2, PIXELS, seed=4)
    left = (prior.analyse(series) * components).sum()
    torch.testing.assert_close(left, (series * prior.synthesise(components)).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 5, 24])
def test_another_prior_expresses_the_same_series(frames):
    first, second, third = priors(frames)
    for before, after in ((first, second), (second, third)):
        components = noise(len(before.basis), 2, PIXELS, seed=5)
        expressed = after.express(components, before)
        torch.testing.assert_close(after.synthesise(expressed), before.synthesise(components), atol=1e-4, rtol=1e-4)


def test_power_is_found_where_it_is():
    """A pixel that beats has power in the component of its beat, and little elsewhere."""
    frames = 16
    beat = torch.cos(torch.pi / frames * 4 * (torch.arange(frames) + 0.5)) * (2 / frames) ** 0.5
    series = torch.zeros(frames, 2, *PLANE)
    series[:, 1, 3, 3] = 300 * beat
    weak = KtPrior(first_prior(brightness(), frames).basis, torch.full((frames, PIXELS), 1e-3))  # leaves nothing open
    prior = next_prior(weak, series.flatten(2), PLANE, 0.5)
    power = prior.power[:frames].view(frames, *PLANE)
    assert power.argmax() // PIXELS == 4
    assert power[4].sum() > 0.45 * power.sum()
    assert power[4].count_nonzero() == (power[4] > 1).sum() + PIXELS - 9
    torch.testing.assert_close(power[4, 3, 3], torch.tensor(300**2 / 9 / 2), rtol=1e-3, atol=0)
    assert power[9].max() < 1e-3 * power.max()


def test_what_was_not_measured_keeps_its_power():
    """A series of zeros says nothing where nothing is measured, and much where everything is."""
    before = first_prior(brightness(100.0), 8)
    nothing, all_lines = (next_prior(before, torch.zeros(8, 2, PIXELS), PLANE, s) for s in (0.0, 1.0))
    torch.testing.assert_close(nothing.power[:8], before.power)
    assert (all_lines.power[:8] <= 1.0).all()


def test_the_constant_is_expected_to_be_the_average():
    power = first_prior(brightness(10.0), 8).power
    torch.testing.assert_close(power[0], torch.full((PIXELS,), 800.0))
    assert power[1:].sum() < 0.1 * power[0].sum()


def test_what_stays_is_no_change():
    """It neither makes slow changes seem likely nor takes a principal component."""
    still = torch.full((8, 2, PIXELS), 100.0)
    prior = next_prior(first_prior(brightness(), 8), still + noise(8, 2, PIXELS), PLANE, 0.5)
    assert prior.power[0].min() > 8e4
    assert prior.power[1:].max() < 100
    assert prior.basis[8:].sum(1).abs().max() < 1e-4
