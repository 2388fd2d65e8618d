import pytest
import torch

from recon_core.diffusion.samplers import from_slices, reverse_diffusion, to_slices
from recon_core.diffusion.sde import Schedule, VarianceExploding


def image(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def normal(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("axis", ["y", "x"])
def test_slices_are_planes_of_time_and_one_axis(axis):
    series = image(3, 4, 5)
    slices = to_slices(series, axis)
    plane = series[:, :, 2] if axis == "y" else series[:, 2]
    torch.testing.assert_close(slices[2], torch.stack((plane.real, plane.imag)))
    assert slices.shape == ((5, 2, 3, 4) if axis == "y" else (4, 2, 3, 5))
    back = from_slices(slices, axis)
    torch.testing.assert_close(back, series)
    assert back.mT.is_contiguous()
    slices.zero_()
    assert series.abs().min() > 0
    assert back.abs().min() > 0


@pytest.mark.parametrize(
    ("directions", "shapes"),
    [
        ("both", [(5, 2, 3, 4), (4, 2, 3, 5)] * 3),
        ("alternating", [(5, 2, 3, 4), (4, 2, 3, 5), (5, 2, 3, 4)]),
        ("sequential", [(5, 2, 3, 4), (4, 2, 3, 5)] * 3),
        ("y", [(5, 2, 3, 4)] * 3),
    ],
)
def test_orientations_in_their_order_and_one_score_for_each(directions, shapes):
    seen, labels = [], []

    def score(slices, sigma):
        seen.append(tuple(slices.shape))
        labels.append(float(sigma))
        return torch.zeros_like(slices)

    schedule = Schedule.of_levels(VarianceExploding(0.01, 1.0), 3)
    reverse_diffusion(image(3, 4, 5), score, lambda given: given, schedule, normal(), directions=directions)
    assert seen == shapes
    steps = torch.arange(3).repeat_interleave(len(shapes) // 3)
    torch.testing.assert_close(torch.tensor(labels), schedule.labels[steps])


@pytest.mark.parametrize("directions", ["both", "alternating"])
@pytest.mark.parametrize(("n_steps", "expected"), [(20, 1.566), (26, 1.406), (100, 1.090)])
def test_noise_settles_at_the_level_of_the_bookkeeping(directions, n_steps, expected):
    """Of a single point as prior, whose score is exact; the spec's table: label times ratio over the root of two."""
    found = []

    def score(slices, sigma):
        found.append(float(slices.std() / sigma))
        return -slices / sigma**2

    schedule = Schedule.of_levels(VarianceExploding(0.01, 50.0), n_steps)
    start = 50 * torch.view_as_complex(normal()((4, 24, 24, 2)))
    reverse_diffusion(start, score, lambda given: given, schedule, normal(1), directions=directions)
    settled = torch.tensor(found[len(found) // 2 :])
    assert abs(float(settled.mean()) - expected / 2**0.5) < 0.03


def test_the_result_is_consistent_and_without_the_noise_of_the_last_step():
    def double(given):
        return 2 * given

    schedule = Schedule.of_levels(VarianceExploding(0.01, 1.0), 2)
    series = image(3, 4, 5)
    noisy, clean = (
        reverse_diffusion(
            series, lambda slices, _: torch.zeros_like(slices), double, schedule, normal(), denoise=denoise
        )
        for denoise in (False, True)
    )
    generator = normal()  # the draws of the first step again
    first, second = generator((5, 2, 3, 4)), generator((4, 2, 3, 5))
    state = 2 * (series + schedule.gains[0] * (from_slices(first, "y") + from_slices(second, "x")) / 2)
    torch.testing.assert_close(clean, 2 * state)
    assert not torch.allclose(noisy, clean)


def test_some_of_the_steps():
    """What comes before a step, made in two ways."""

    def score(slices, _):
        return 0.1 * slices

    series = image(3, 4, 5)
    schedule = Schedule.of_levels(VarianceExploding(0.1, 1.0), 3)
    found = [
        reverse_diffusion(series, score, lambda given: 2 * given, schedule, None, directions="alternating", steps=steps)
        for steps in (range(0), range(1), range(2), range(3), None)
    ]
    assert torch.equal(found[0], series)
    for before, after, gain in zip(found, found[1:4], schedule.gains.square().tolist(), strict=False):
        torch.testing.assert_close(after, 2 * before * (1 + 0.1 * gain))
    assert torch.equal(found[3], found[4])
    last = reverse_diffusion(
        found[1], score, lambda given: 2 * given, schedule, None, directions="alternating", steps=range(1, 3)
    )
    assert torch.equal(last, found[3])
