import numpy as np
import pytest
import torch

from recon_core.classical import kt_sense as module
from recon_core.classical.cg_sense import CGSense
from recon_core.classical.kt_sense import KtSense, settle
from recon_core.options import CGSenseOptions, KtSenseOptions
from recon_core.physics.fourier import ifft
from recon_core.physics.sense import SenseOperator
from recon_core.simulate.kspace import simulate_cine
from recon_core.simulate.sampling import sampling_mask
from tests.recon_core.support import run, slice_of

NOISE = 2.0  # variance of a complex sample


def beating(disc, n_frames, n_y, n_x):
    """A disc (frame, y, x) of signal 100 with a part whose border moves with the beat, and its motion."""
    y, x = np.mgrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
    phase = 2 * np.pi * np.arange(n_frames)[:, None, None] / n_frames
    heart = np.hypot(y, x + 0.1) < 0.35 + 0.1 * np.cos(phase)
    return torch.tensor(100 * disc(n_y, n_x) * (1 + 0.8 * heart), dtype=torch.complex64)


def measured(maps, image, mask, seed=0):
    data = SenseOperator(maps, mask).forward(image)
    noise = torch.randn(data.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask[:, None, :, None], data + NOISE**0.5 * noise, 0)


def scan(smooth_maps, disc, sampling, acceleration, acs, *, coils=6, frames=16, size=(48, 40)):
    maps, image = torch.tensor(smooth_maps(coils, *size)), beating(disc, frames, *size)
    mask = torch.tensor(sampling_mask(sampling, frames, size[0], acceleration=acceleration, acs_lines=acs, seed=3))
    return measured(maps, image, mask), maps, mask, image


def error(image, truth):
    return float((image - truth).norm() / truth.norm())


PATTERNS = [("uniform", 4, 12), ("interleaved", 4, 0), ("variable_density", 6, 4), ("gro", 6, 0)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=[name for name, *_ in PATTERNS])
def test_less_error_than_frame_by_frame(smooth_maps, disc, pattern):
    data, maps, mask, truth = scan(smooth_maps, disc, *pattern)
    ours = error(run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE), truth)
    theirs = error(run(CGSense(CGSenseOptions()), data, maps, mask, noise_variance=NOISE), truth)
    assert ours < (0.5 if pattern[0] == "interleaved" else 0.9) * theirs


def test_what_stays_gets_better_too(smooth_maps, disc):
    """The image of the time average, with which it begins, is not the best one of what does not move."""
    maps, still = torch.tensor(smooth_maps(6, 48, 40)), beating(disc, 1, 48, 40).expand(16, -1, -1)
    mask = torch.tensor(sampling_mask("uniform", 16, 48, acceleration=4, acs_lines=12))
    data = measured(maps, still, mask)
    average = CGSense(CGSenseOptions(warm_start=False))
    begun = run(average, data.mean(0, keepdim=True), maps, mask[:1], noise_variance=NOISE / 16)
    image = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    assert error(image, still) < 0.92 * error(begun, still[:1])


def test_rounds_bring_it_closer(smooth_maps, disc):
    data, maps, mask, truth = scan(smooth_maps, disc, "interleaved", 4, 0)
    methods = [KtSense(KtSenseOptions(rounds=rounds)) for rounds in (1, 3, 9)]
    errors = [error(run(method, data, maps, mask, noise_variance=NOISE), truth) for method in methods]
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


def simulated(**scan):
    """Data, maps, mask, truth and variance of the noise of a simulated scan."""
    cine = simulate_cine(12, (64, 56), 8, **scan)
    maps = torch.tensor(cine.coil_maps / np.linalg.norm(cine.coil_maps, axis=0))
    data, variance = ifft(torch.tensor(cine.kspace), (-1,)), float(cine.noise_covariance[0, 0].real)
    return data, maps, torch.tensor(cine.mask), torch.tensor(cine.image), variance


@pytest.mark.parametrize(("snr", "goes_on"), [(1000, True), (30, False)])
def test_rounds_go_on_where_one_still_changes_much(snr, goes_on):
    """As with little noise: there the prior holds back; else further rounds would take weak changes for none."""
    data, maps, mask, truth, variance = simulated(sampling="variable_density", acceleration=4, snr=snr)
    seven, more = (
        run(KtSense(KtSenseOptions(rounds=rounds)), data, maps, mask, noise_variance=variance) for rounds in (7, 20)
    )
    if goes_on:
        assert error(more, truth) < 0.92 * error(seven, truth)
    else:
        torch.testing.assert_close(more, seven, rtol=0, atol=0)


def test_few_lines_need_more_rounds():
    data, maps, mask, truth, variance = simulated(sampling="variable_density", acceleration=16, snr=100)
    few, more = (
        error(run(KtSense(KtSenseOptions(rounds=rounds)), data, maps, mask, noise_variance=variance), truth)
        for rounds in (7, 20)
    )
    assert more < 0.98 * few


def test_scale_of_the_data_changes_nothing(smooth_maps, disc):
    data, maps, mask, _ = scan(smooth_maps, disc, "interleaved", 4, 0)
    image = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    for factor in (1e-12, 1e9):
        scaled = run(KtSense(KtSenseOptions()), factor * data, maps, mask, noise_variance=NOISE * factor**2)
        assert error(scaled / factor, image) < 1e-4


def test_noise_that_is_not_known_is_seen(smooth_maps, disc):
    data, maps, mask, truth = scan(smooth_maps, disc, "interleaved", 4, 0)
    known = error(run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE), truth)
    unknown = error(run(KtSense(KtSenseOptions()), 1e-3 * data, maps, mask) / 1e-3, truth)
    assert unknown < 1.25 * known  # signal in the corners makes the noise seem stronger


@pytest.mark.parametrize("stated", [True, False])
def test_next_to_no_noise_does_not_stop_the_steps(monkeypatch, stated):
    data, maps, mask, truth, variance = simulated(acceleration=6, snr=3000)
    variance = variance if stated else None
    ours = error(run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=variance), truth)
    monkeypatch.setattr(module, "LEAST_NOISE", 1e-6)
    slow = error(run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=variance), truth)
    assert ours < 0.7 * slow


def test_empty_frames_are_filled_from_the_others(smooth_maps, disc):
    data, maps, mask, truth = scan(smooth_maps, disc, "interleaved", 3, 0, frames=24)
    mask[[5, 11]] = False
    data = torch.where(mask[:, None, :, None], data, 0)
    image = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    average = truth.mean(0).expand(2, -1, -1)
    assert error(image[[5, 11]], truth[[5, 11]]) < 0.9 * error(average, truth[[5, 11]])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames_are_no_worse_than_frame_by_frame(smooth_maps, disc, frames):
    data, maps, mask, truth = scan(smooth_maps, disc, "uniform", 2, 12, frames=frames)
    image = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    theirs = run(CGSense(CGSenseOptions()), data, maps, mask, noise_variance=NOISE)
    assert error(image, truth) < 1.05 * error(theirs, truth)


def test_one_line(smooth_maps, disc):
    data, maps, mask, _ = scan(smooth_maps, disc, "uniform", 2, 12)
    mask[:] = False
    mask[:, 24] = True
    image = run(
        KtSense(KtSenseOptions()), torch.where(mask[:, None, :, None], data, 0), maps, mask, noise_variance=NOISE
    )
    assert image.isfinite().all()
    assert image.abs().max() > 0


def test_zeros_give_zeros(smooth_maps):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    mask = torch.ones(5, 16, dtype=torch.bool)
    for known in (NOISE, None):
        image = run(
            KtSense(KtSenseOptions(samples=1)),
            torch.zeros(5, 4, 16, 12, dtype=torch.complex64),
            maps,
            mask,
            noise_variance=known,
        )
        assert image.count_nonzero() == 0


def test_one_coil(smooth_maps, disc):
    data, maps, mask, truth = scan(smooth_maps, disc, "variable_density", 3, 6, coils=1)
    image = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    assert error(image, truth) < error(run(CGSense(CGSenseOptions()), data, maps, mask, noise_variance=NOISE), truth)


def test_maps_for_each_frame(smooth_maps, disc):
    data, maps, mask, _ = scan(smooth_maps, disc, "interleaved", 4, 0)
    plain = run(KtSense(KtSenseOptions()), data, maps, mask, noise_variance=NOISE)
    each = maps.expand(len(mask), -1, -1, -1).contiguous()
    assert error(run(KtSense(KtSenseOptions()), data, each, mask, noise_variance=NOISE), plain) < 0.01


def test_two_thirds_of_the_errors_are_within_the_uncertainty(smooth_maps, disc):
    data, maps, mask, truth = scan(smooth_maps, disc, "interleaved", 4, 0)
    extra = {}
    image = run(KtSense(KtSenseOptions(samples=8)), data, maps, mask, noise_variance=NOISE, extra=extra)
    inside = truth[0].abs() > 30
    within = (image.abs() - truth.abs()).abs() < extra["uncertainty"]
    assert 0.55 < float(within[:, inside].float().mean()) < 0.9


def test_semi_real(semi_real):
    """Real cines and coils: less error than the better of two prototypes of the same idea."""
    limits = {"mini": 0.0285, "scd201": 0.037, "scd301": 0.0345}
    for name, limit in limits.items():
        case = semi_real(name)[0]
        colouring = np.linalg.inv(case.colouring)
        maps = np.einsum("vc,cyx->vyx", colouring, case.coil_maps)
        maps /= np.linalg.norm(maps, axis=0)
        hybrid = ifft(torch.tensor(case.kspace), (-1,))
        image = run(
            KtSense(KtSenseOptions()),
            hybrid,
            torch.tensor(maps, dtype=torch.complex64),
            torch.tensor(case.mask),
            noise_variance=NOISE,
        )
        shading = np.linalg.norm(np.einsum("rc,cyx->ryx", case.colouring, maps), axis=0)
        ours, truth = image.abs().numpy() * shading, np.abs(case.reference)
        ours *= (ours * truth).sum() / (ours**2).sum()
        assert np.linalg.norm(ours - truth) < limit * np.linalg.norm(truth), name


# --- the image of another method --------------------------------------------------------------------------------------


def given_image(smooth_maps, disc, *, wrong=8.0):
    """A slice, an image of it with white errors, their deviation, and the truth."""
    data, maps, mask, truth = scan(smooth_maps, disc, "variable_density", 6, 4)
    errors = torch.randn(truth.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(5))
    image, deviation = truth + wrong * 2**0.5 * errors, torch.full(truth.shape, wrong)
    return slice_of(data, maps, mask, noise_variance=NOISE), image, deviation, truth


def test_an_image_with_errors_is_settled_with_data_and_prior(smooth_maps, disc):
    data, image, deviation, truth = given_image(smooth_maps, disc)
    settled = settle(data, image, deviation)
    assert error(settled, truth) < 0.85 * error(image, truth)
    moving = truth.abs().std(0) > 10
    assert error(settled[:, moving], truth[:, moving]) < 0.9 * error(image[:, moving], truth[:, moving])
    assert not data.notes
    assert not data.extra


def test_what_is_wrong_in_all_frames_is_put_right(smooth_maps, disc):
    """The data of all frames tell of it, as of edges that a network draws too smooth."""
    data, _, deviation, truth = given_image(smooth_maps, disc)
    wrong = 8 * torch.randn(truth.shape[1:], dtype=torch.complex64, generator=torch.Generator().manual_seed(5))
    settled = settle(data, truth + wrong, deviation)
    assert error(settled, truth) < 0.6 * error(truth + wrong, truth)


def test_an_image_without_errors_is_left_alone(smooth_maps, disc):
    data, _, deviation, truth = given_image(smooth_maps, disc)
    assert error(settle(data, truth, torch.zeros_like(deviation)), truth) < 1e-3


@pytest.mark.parametrize("frames", [1, 2])
def test_few_frames_are_settled(smooth_maps, disc, frames):
    data, maps, mask, truth = scan(smooth_maps, disc, "uniform", 2, 12, frames=frames)
    deviation = torch.full(truth.shape, 8.0)
    settled = settle(slice_of(data, maps, mask, noise_variance=NOISE), truth, deviation)
    assert error(settled, truth) < 0.1


def test_of_nothing_comes_nothing(smooth_maps):
    mask = torch.ones(4, 16, dtype=torch.bool)
    data = slice_of(torch.zeros(4, 3, 16, 12, dtype=torch.complex64), torch.tensor(smooth_maps(3, 16, 12)), mask)
    nothing = torch.zeros(4, 16, 12, dtype=torch.complex64)
    assert not settle(data, nothing, nothing.real).any()


def test_steps_lead_to_the_minimum(smooth_maps, disc, monkeypatch):
    data, image, deviation, _ = given_image(smooth_maps, disc)
    monkeypatch.setattr(module, "_SETTLING_ITERATIONS", 60)
    kept = []
    improve = module._Problem.improve

    def keeping(problem, prior, components, remaining, iterations):
        kept[:] = problem, prior, *(result := improve(problem, prior, components, remaining, iterations))
        return result

    monkeypatch.setattr(module._Problem, "improve", keeping)
    settle(data, image, deviation)
    problem, prior, components, remaining = kept
    series = prior.synthesise(components)
    given = problem.flat(image / NOISE**0.5)
    away = given - series
    away = away - away.mean(0) + away.mean(0) / len(away)  # what is the same in all frames is held less
    left = problem.adjoint(data, NOISE**0.5) - problem.explained(series) + problem.held * away
    torch.testing.assert_close(remaining, left, rtol=1e-3, atol=1e-3 * float(left.abs().max()))
    gradient = prior.analyse(left) - components / prior.power[:, None]
    assert gradient.norm() < 0.1 * prior.analyse(left).norm()
