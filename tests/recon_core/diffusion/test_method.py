from dataclasses import replace

import pytest
import torch

from recon_core.diffusion import method as method_module
from recon_core.diffusion import score_network
from recon_core.diffusion.method import DSTDM
from recon_core.diffusion.warm_start import temporal_sense
from recon_core.errors import ModelError, SettingsError
from recon_core.options import DSTDMOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from recon_core.simulate.sampling import interleaved_mask
from tests.bench.published import dstdm as published
from tests.parity_cases.dstdm import gaussian_score
from tests.recon_core.diffusion.support import PRIOR, field, moving_lines, scan, tiny, truth
from tests.recon_core.physics.test_memory import peak_bytes

SHORT = DSTDMOptions(steps=2)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def sampled(network, data, **options):
    return network.sample(data, DSTDMOptions(**{"steps": 2, **options}))


def root_mean_square(image):
    return float(image.abs().square().mean().sqrt())


def with_exact_score(network, evaluations=None, prior=PRIOR):
    """The network with the score of Gaussian images instead of what it does not know."""

    def evaluate(slices, sigma):
        if evaluations is not None:
            evaluations.append(tuple(slices.shape))
        return gaussian_score(slices, float(sigma), *prior)

    network.score.evaluate = evaluate
    return network


@pytest.mark.parametrize(("mode", "expected"), [("fast", 20), ("fastest", 10), ("paper", 200)])
def test_evaluations_of_the_modes(mode, expected):
    evaluations = []
    data = scan(moving_lines(4, 8, 2), n_x=6)
    with_exact_score(tiny(), evaluations).sample(data, DSTDMOptions(sampler=mode))
    assert len(evaluations) == expected
    assert evaluations.count((6, 2, 4, 8)) == evaluations.count((8, 2, 4, 6)) == expected // 2
    assert f"{expected // 2 if mode == 'paper' else expected} steps" in data.notes[-1]


def test_sampling_improves_on_its_first_image():
    """With the prior that the image was drawn from; the mean of samples is nearer to the truth than each of them."""
    reference = field(8, 32, 24)
    data = scan(moving_lines(8, 32, 4), n_x=24, noise=0.02, image=reference)
    network = with_exact_score(tiny())
    errors = {
        name: root_mean_square(network.sample(data, DSTDMOptions(**options)).image - reference)
        for name, options in (("fast", {}), ("fastest", {"sampler": "fastest"}), ("mean", {"samples": 6}))
    }
    first = temporal_sense(DataConsistency(data.maps, data.mask, data.hybrid))
    assert max(errors.values()) < root_mean_square(first - reference)
    assert errors["mean"] < errors["fast"]


def begun(error=0.1, **more):
    """A scan whose start is known to have white errors, and its truth."""
    reference = field(8, 32, 24)
    data = scan(moving_lines(8, 32, 4), n_x=24, noise=0.02, image=reference, **more)
    wrong = torch.view_as_complex(torch.randn(8, 32, 24, 2, generator=torch.Generator().manual_seed(4)))
    return replace(
        data, noise_variance=0.02**2, start=reference + error * wrong, start_deviation=torch.full((8, 32, 24), error)
    ), reference


@pytest.mark.parametrize(("mode", "steps", "better"), [("fast", 4, 0.9), ("fastest", 2, 0.9)])
def test_a_start_with_known_errors_is_improved_without_noise(mode, steps, better):
    evaluations = []
    data, reference = begun()
    network = with_exact_score(tiny(), evaluations)
    images = [network.sample(data, DSTDMOptions(sampler=mode, seed=seed)).image for seed in (0, 1)]
    assert torch.equal(*images)
    assert len(evaluations) == 2 * steps
    assert data.notes == [f"{steps} steps from noise 0.3"]
    assert root_mean_square(images[0] - reference) < better * root_mean_square(data.start - reference)


def test_a_better_known_start_changes_less():
    data, _ = begun(0.02)
    network = with_exact_score(tiny())
    change = root_mean_square(network.sample(data).image - data.start)
    less = root_mean_square(network.sample(replace(data, start_deviation=data.start_deviation / 4)).image - data.start)
    assert less < 0.7 * change


def test_nothing_is_drawn_around_a_known_start():
    """The spread of draws says little of the error there."""
    data, _ = begun()
    network = with_exact_score(tiny())
    result = network.sample(data, DSTDMOptions(samples=2))
    assert torch.equal(result.image, network.sample(replace(data, notes=[])).image)
    assert result.deviation is None
    assert "seed" not in data.notes[0]


def test_windows_of_a_series_do_not_fill_the_comment():
    """Each has a start of its own, and noise of its own to begin with."""
    data, _ = begun()
    deviation = data.start_deviation * torch.linspace(1, 2, 8)[:, None, None]
    for first in (0, 4):
        part = replace(data, start_deviation=deviation).select_started(torch.arange(first, first + 4))
        assert part.notes is data.notes
        with_exact_score(tiny()).sample(part)
    assert len(data.notes) == 1


def test_the_data_count_by_their_noise():
    """With much noise an image may differ from the data, with little it may not."""
    data, _ = begun()
    consistency = DataConsistency(data.maps, data.mask, data.hybrid)
    network = with_exact_score(tiny())
    rests = [
        float(consistency.residual(network.sample(replace(data, noise_variance=noise**2)).image).norm())
        for noise in (0.01, 0.1)
    ]
    assert rests[0] < 0.5 * rests[1]


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_the_result_agrees_with_the_data_of_one_coil(mode):
    """With one coil the replacement is exact."""
    data = scan(moving_lines(4, 8, 2), n_x=6, n_coils=1)
    image = sampled(tiny(sigma_max=1.0), data, sampler=mode).image
    kspace = fft(data.maps * image[:, None], (-2,))
    measured = data.mask[:, None, :, None].expand_as(kspace)
    torch.testing.assert_close(kspace[measured], data.hybrid[measured], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_a_seed_stands_for_an_image(mode):
    network, data = tiny(sigma_max=1.0), scan(moving_lines(4, 8, 2), n_x=6)
    images = [sampled(network, data, sampler=mode, seed=seed).image for seed in (5, 5, 6)]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-4)


def test_the_state_of_other_generators_does_not_matter():
    network, data = tiny(), scan(moving_lines(4, 8, 2), n_x=6)
    image = sampled(network, data).image
    torch.manual_seed(77)
    assert torch.equal(sampled(network, data).image, image)


def test_portions_change_nothing(monkeypatch):
    network, data = tiny(), scan(moving_lines(4, 12, 2), n_x=10)
    image = sampled(network, data).image
    monkeypatch.setitem(score_network._PORTION_BYTES, "cpu", 1)
    torch.testing.assert_close(sampled(network, data).image, image, rtol=1e-4, atol=1e-5)


def test_several_samples_give_mean_and_deviation():
    network, data = with_exact_score(tiny()), scan(moving_lines(4, 8, 4), n_x=6)
    alone = sampled(network, data)
    assert alone.deviation is None
    drawn = []
    original = method_module.reverse_diffusion

    def kept(*arguments, **more):
        drawn.append(original(*arguments, **more).clone())
        return drawn[-1].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_module, "reverse_diffusion", kept)
        several = sampled(network, data, samples=4)
    images = torch.stack(drawn)
    torch.testing.assert_close(images[0], alone.image)
    torch.testing.assert_close(several.image, images.mean(0))
    expected = ((images - images.mean(0)).abs().square().sum(0) / 3).sqrt()
    torch.testing.assert_close(several.deviation, expected)
    assert several.deviation.dtype == torch.float32


def test_reconstruct_samples_as_the_network_is_set():
    network, data = tiny(), scan(moving_lines(4, 8, 2), n_x=6)
    network.sampling = DSTDMOptions(sampler="fastest", steps=3, seed=2)
    torch.testing.assert_close(network.reconstruct(data), network.sample(data, network.sampling).image)


def test_consistency_is_repeated_or_solved(monkeypatch):
    network, data = with_exact_score(tiny()), scan(moving_lines(4, 8, 2), n_x=6)
    calls = []
    for name in ("hard", "solve"):
        original = getattr(DataConsistency, name)

        def counted(self, *arguments, name=name, original=original, **more):
            calls.append(name)
            return original(self, *arguments, **more)

        monkeypatch.setattr(DataConsistency, name, counted)
    for options, expected in [
        ({}, ["hard"] * 3),
        ({"consistency_repetitions": 2}, ["hard"] * 6),
        ({"consistency_iterations": 4}, ["solve"] * 3),
        ({"start_noise": 0.4}, ["hard"] * 9),
        ({"start_noise": 0.4, "consistency_repetitions": 1}, ["hard"] * 3),
        ({"sampler": "paper"}, ["hard"] * 3),
    ]:
        calls.clear()
        sampled(network, data, **options)
        assert calls == expected, options


def test_more_consistency_agrees_better():
    network, data = with_exact_score(tiny()), scan(moving_lines(4, 16, 2), n_x=6, noise=0.0)
    consistency = DataConsistency(data.maps, data.mask, data.hybrid)
    rests = [
        float(consistency.residual(sampled(network, data, **options).image).norm())
        for options in ({}, {"consistency_repetitions": 4}, {"consistency_iterations": 6})
    ]
    assert rests[1] < 0.5 * rests[0]
    assert rests[2] < 0.5 * rests[0]


@pytest.mark.parametrize("options", [{}, {"consistency_iterations": 3}])
def test_where_the_maps_are_zero_so_is_the_image(options):
    data = scan(moving_lines(4, 8, 2), n_x=6)
    data.maps[:, :3] = 0
    image = sampled(tiny(), data, **options).image
    assert (image[:, :3] == 0).all()
    assert (image[:, 3:] != 0).all()


@pytest.mark.parametrize("mode", ["fast", "paper"])
@pytest.mark.parametrize(
    ("n_frames", "n_y", "n_x", "n_coils"), [(1, 8, 6, 2), (5, 7, 9, 1), (3, 1, 1, 1), (4, 8, 1, 3), (13, 6, 5, 2)]
)
def test_any_size(mode, n_frames, n_y, n_x, n_coils):
    data = scan(moving_lines(n_frames, n_y, 2), n_x=n_x, n_coils=n_coils)
    image = sampled(tiny(sigma_max=1.0), data, sampler=mode).image
    assert image.shape == (n_frames, n_y, n_x)
    assert image.dtype == torch.complex64
    assert image.isfinite().all()


def test_frames_without_data_are_filled():
    mask = moving_lines(12, 24, 2)
    mask[2] = False
    network = with_exact_score(tiny(), prior=(1.0, 3.0, 0.2))  # of slow images
    data, reference = scan(mask, n_x=20), truth(12, 24, 20)[2]
    image = network.sample(data).image[2]
    assert root_mean_square(image - reference) < 0.35 * root_mean_square(reference)


@pytest.mark.parametrize("samples", [1, 2])
def test_nothing_measured_gives_nothing(samples):
    data = scan(moving_lines(4, 8, 2), n_x=6)
    result = sampled(tiny(), replace(data, hybrid=torch.zeros_like(data.hybrid)), samples=samples)
    assert not result.image.any()
    assert result.deviation is None or not result.deviation.any()


def test_bfloat16_changes_the_image_a_little():
    network, data = tiny(parametrisation="edm"), scan(moving_lines(8, 16, 2))
    exact = sampled(network, data).image
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = sampled(network, data).image
    assert image.dtype == torch.complex64
    assert 0 < root_mean_square(image - exact) < 0.03 * root_mean_square(exact)


def test_start_noise_stays_among_the_levels_that_the_network_knows():
    network, data = with_exact_score(tiny(sigma_max=0.3)), scan(moving_lines(4, 8, 2), n_x=6)
    for wanted, taken in ((5.0, 0.3), (0.1, 0.1), (1e-6, 0.02)):
        data.notes.clear()
        sampled(network, data, start_noise=wanted)
        assert data.notes == [f"2 steps from noise {taken:.2g}, seed 0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "slow"}, "fast, fastest, paper"),
        ({"steps": 1}, "2 or more"),
        ({"steps": -2}, "'sampler_steps' must be a whole number from 0"),
        ({"samples": 0}, "'samples' must be a whole number from 1"),
        ({"seed": -1}, "'seed' must be a whole number from 0"),
        ({"start_noise": -0.1}, "'start_noise' must be a number from 0"),
    ],
)
def test_options_that_make_no_image(options, message):
    with pytest.raises(SettingsError, match=message):
        DSTDMOptions(**options)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(network):
    """As the authors' trainer saves it: the average is a list in the order of the parameters."""
    model = {network.authors_key(name): value.clone() for name, value in network.named_parameters()}
    average = [value + 1 for value in model.values()]
    sigmas = torch.linspace(50, 0.01, 100, dtype=torch.float64)
    return {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {"sigmas": sigmas, **model},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": average},
        "step": 7,
    }


def test_the_running_average_is_taken_from_a_checkpoint():
    document = checkpoint(tiny())
    tensors = DSTDM.from_checkpoint(document)
    assert list(tensors) == list(document["model"])[1:]
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, document["model"][name] + 1)


def test_other_documents_are_left_to_others():
    document = checkpoint(tiny())
    assert DSTDM.from_checkpoint(document["model"]) is None
    assert DSTDM.from_checkpoint({"model": document["model"], "ema": {}}) is None


@pytest.mark.parametrize("spoil", [lambda tensors: tensors.pop(), lambda tensors: tensors.reverse()])
def test_an_average_that_does_not_fit_is_refused(spoil):
    document = checkpoint(tiny())
    spoil(document["ema"]["shadow_params"])
    with pytest.raises(ModelError, match="do not fit"):
        DSTDM.from_checkpoint(document)


# --- memory, and the published code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "mode"), [((12, 8, 48, 32), "fast"), pytest.param((5, 10, 66, 50), "paper", marks=pytest.mark.slow)]
)
def test_memory_is_predicted(shape, mode):
    n_frames, n_coils, n_y, n_x = shape
    network = tiny(channel_factors=(1, 2, 2), blocks=2)
    data = scan(torch.from_numpy(interleaved_mask(n_frames, n_y, 3)), n_x=n_x, n_coils=n_coils)
    measured = peak_bytes(lambda: sampled(network, data, sampler=mode))
    assert measured < network.working_bytes(shape) < 1.5 * measured


@pytest.mark.parametrize(
    "options", [{"sampler": "paper", "samples": 2}, {"samples": 2}, {"consistency_iterations": 2, "samples": 2}]
)
@pytest.mark.parametrize("shape", [(12, 8, 64, 48), pytest.param((5, 10, 96, 90), marks=pytest.mark.slow)])
def test_memory_is_predicted_without_the_features(shape, options, monkeypatch):
    monkeypatch.setattr(score_network.ScoreNetwork, "slice_bytes", lambda *_: 0)
    monkeypatch.setattr(score_network.ScoreNetwork, "evaluate", lambda _, slices, __: torch.zeros_like(slices))
    n_frames, n_coils, n_y, n_x = shape
    network = tiny()
    data = scan(torch.from_numpy(interleaved_mask(n_frames, n_y, 3)), n_x=n_x, n_coils=n_coils)
    measured = peak_bytes(lambda: sampled(network, data, **options))
    assert measured < network.working_bytes(shape) < 1.5 * measured


def test_the_published_code_gives_the_same_image():
    network = tiny(sigma_max=1.0)
    data = scan(moving_lines(4, 8, 2), n_x=12, n_coils=2)
    generator = torch.Generator().manual_seed(3)
    kspace = fft(data.hybrid, (-1,)).permute(3, 1, 0, 2)
    mask = data.mask[:, None, :, None].expand(-1, 1, -1, 12).permute(3, 1, 0, 2).to(torch.complex64)
    maps = data.maps.expand(4, -1, -1, -1).permute(3, 1, 0, 2)
    calls = []
    network.score.register_forward_hook(lambda *call: calls.append(len(call[-1])))
    theirs = published.forward(
        network, kspace, mask, maps, lambda shape: torch.randn(shape, generator=generator), n_steps=3
    )
    assert len(calls) == 12
    ours = network.sample(data, DSTDMOptions(sampler="paper", steps=3, seed=3)).image
    theirs = torch.complex(theirs[:, 0], theirs[:, 1]).permute(1, 2, 0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_steps_one_by_one_are_the_whole_way():
    data, _ = begun()
    network = tiny(parametrisation="edm", sigma_min=0.004)
    torch.testing.assert_close(network.step(data, 0.99), network.sample(data).image)
    deviation = data.start_deviation
    assert not torch.equal(network.step(data, 0.5), network.step(data, 0.74 - 0.5))
    assert torch.equal(network.step(data, 0.5), network.step(data, 0.74))
    assert data.start_deviation is deviation


def test_a_step_needs_a_start_that_is_known():
    with pytest.raises(ModelError, match="expected a start whose error is known"):
        tiny().step(scan(moving_lines(4, 8, 2), n_x=6), 0.0)
