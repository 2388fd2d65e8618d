"""dSTDM: states ``(x, 2, frame, y)``, k-space and maps ``(x, coil, frame, y)``, centred; the arrays tell the case."""

import numpy as np
import torch

from recon_core.diffusion.loss import ExponentialAverage, denoising_loss, draw_times
from recon_core.diffusion.method import DSTDM
from recon_core.diffusion.samplers import from_slices, reverse_diffusion, to_slices
from recon_core.diffusion.score_network import ScoreConfig
from recon_core.diffusion.sde import SHORTEST_TIME, Schedule, VarianceExploding
from recon_core.networks import golden
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import ifft


def run(arrays, config):
    if "labels" in arrays:
        return network_case(arrays, build(n_features(arrays, config)).score)
    if "train_batch" in arrays:
        # The weights of this case have a width of their own, which the published configuration does not say.
        with torch.inference_mode(False), torch.enable_grad():  # it trains
            return loss_case(arrays, build(32 if "optim" in config else n_features(arrays, config, 32)).score)
    if "kspace_full" in arrays:
        return data_case(arrays)
    if "a" in arrays:
        return linear_case(arrays)
    return network_sampler_case(arrays, build(n_features(arrays, config)).score)


def n_features(arrays, config, usual=128):
    return int(arrays.get("nf", config.get("nf", usual)))


def build(channels):
    network = DSTDM(ScoreConfig(channels=channels)).eval()
    golden.fill(network, value)
    return network


def value(key, shape):
    """The numbers that the authors' parameter `key` is filled with."""
    if key.endswith("NIN_0.W"):
        return golden.normal(key, shape) / np.float32(np.sqrt(shape[1]))
    if key.endswith("weight") and len(shape) == 1:
        return 1 + golden.fill_value(key, shape)
    return golden.fill_value(key, shape)


# --- network ----------------------------------------------------------------------------------------------------------


def network_case(arrays, network):
    modules = [*network.embedding, network.first, *network.encoder, *network.middle, *network.decoder]
    modules += [network.norm, network.last]
    inputs, outputs = [], []

    def keep(_module, given, output):
        inputs.append(given[0].clone())
        outputs.append(output.clone())  # activations are applied in place

    for module in modules:
        module.register_forward_hook(keep)
    out = network(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])).numpy()
    return {
        "out": out,
        "trace_l2": np.array([output.double().norm() for output in outputs]),
        "trace_mean": np.array([output.double().mean() for output in outputs]),
        "embedding": inputs[0].numpy(),
        "temb": outputs[1].numpy(),
    }


# --- process and training ---------------------------------------------------------------------------------------------


def loss_case(arrays, network):
    process = VarianceExploding()
    results = {}
    for n_steps in (100, 5):
        schedule = Schedule.published(process, n_steps)
        results |= {
            f"discrete_sigmas_{n_steps}": process.levels(n_steps).numpy(),
            f"timesteps_{n_steps}": torch.linspace(1, SHORTEST_TIME, n_steps).numpy(),
            f"index_{n_steps}": np.arange(n_steps)[::-1].copy(),
            f"label_{n_steps}": schedule.labels.numpy(),
            f"G_{n_steps}": schedule.gains.numpy(),
        }
    times = torch.from_numpy(arrays["pert_t"])
    results |= {"pert_std": process.sigma(times).numpy(), "pert_diffusion": process.diffusion(times).numpy()}

    clean = torch.from_numpy(arrays["train_batch"])
    uniform, noise = draws(np.random.default_rng(77), clean)
    for name, weighting in (("", False), ("_likelihood_weighted", True)):
        loss = denoising_loss(network, clean, draw_times(uniform), noise, likelihood_weighting=weighting)
        results[f"loss_eval{name}"] = np.float64(loss.detach())
    results["loss_t_uniform"] = uniform.numpy()
    return results | train(network, clean, str(arrays["train_slice_key"]))


def train(network, clean, key):
    """Three updates as published, but for a warm-up of two."""
    generator = np.random.default_rng(78)
    average = ExponentialAverage(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.9, 0.999), eps=1e-8)
    losses, rates, norms, decays = [], [], [], []
    for step in range(3):
        uniform, noise = draws(generator, clean)
        loss = denoising_loss(network, clean, draw_times(uniform), noise)
        optimiser.zero_grad()
        loss.backward()
        rates.append(2e-4 * min(step / 2, 1))
        optimiser.param_groups[0]["lr"] = rates[-1]
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)))
        losses.append(float(loss.detach()))
        optimiser.step()
        average.update()
    name, parameter = next(pair for pair in network.named_parameters() if network.authors_key(pair[0]) == key)
    results = {
        "train_loss": np.array(losses),
        "train_lr": np.array(rates),
        "train_grad_norm_before_clip": np.array(norms),
        "train_param_slice": parameter[:4].detach().numpy().copy(),
        "train_ema_slice": average.tensors[name][:4].numpy().copy(),
    }
    other = ExponentialAverage(torch.nn.Linear(1, 1))
    for _ in range(5):
        other.update()
        decays.append(other.decay)
    return results | {"ema_effective_decay_first5": np.array(decays)}


def draws(generator, clean):
    """Times, then noise."""
    uniform = generator.random(len(clean)).astype(np.float32)
    noise = generator.standard_normal(tuple(clean.shape)).astype(np.float32)
    return torch.from_numpy(uniform), torch.from_numpy(noise)


# --- data -------------------------------------------------------------------------------------------------------------


def data_case(arrays):
    # Stored as (coil, frame, x, y).
    kspace, maps, mask = (torch.from_numpy(arrays[name]).permute(1, 0, 3, 2) for name in ("kspace_full", "csm", "mask"))
    mask = mask[:, 0] > 0.5
    factor = float(measurement(kspace, maps, torch.ones_like(mask)).zero_filled.abs().max())
    measured = torch.where(mask[:, None], kspace, 0) / factor
    consistency = measurement(measured, maps, mask)
    state = from_slices(torch.from_numpy(arrays["dc_x"]), "y")
    replaced = to_state(consistency.hard(state))

    # One readout position, transformed along x already.
    hybrid, hybrid_maps = (
        torch.from_numpy(arrays[name]).permute(1, 0, 3, 2) for name in ("train_hybrid_k", "train_csm")
    )
    everything = torch.ones(hybrid[:, 0, :, 0].shape, dtype=torch.bool)
    combined = DataConsistency(hybrid_maps, everything, hybrid).zero_filled[..., 0]
    return {
        "factor": np.float64(factor),
        "test_cc": consistency.zero_filled.permute(2, 0, 1)[:, None].contiguous().numpy(),
        "test_k": measured.permute(3, 1, 0, 2).contiguous().numpy(),
        "test_mask": mask.permute(2, 0, 1)[:, None].float().contiguous().numpy(),
        "test_csm": maps.permute(3, 1, 0, 2).contiguous().numpy(),
        "dc_out_lambda0.0": replaced,
        "dc_out_lambda0.7": to_state(consistency.weighted(state, 1 / 0.7)),
        "conditional_noise_out": replaced,
        "grad_dc_out_lambda0.7": to_state(consistency.gradient(state, 0.7)),
        "train_cc": (combined / combined.abs().max())[None].numpy(),
    }


def measurement(kspace, maps, mask):
    """From k-space ``(frame, coil, ky, kx)`` and a mask of its points, which are lines as a rule."""
    lines = mask[..., 0]
    if bool((mask == lines[..., None]).all()):
        return DataConsistency(maps, lines, ifft(kspace, (-1,)))
    return DataConsistency(maps, mask, kspace)


def to_state(image):
    return to_slices(image, "y").numpy()


# --- samplers ---------------------------------------------------------------------------------------------------------


def linear_case(arrays):
    def score(slices, sigma):
        return gaussian_score(slices, float(sigma), *(float(arrays[name]) for name in ("a", "w0", "t0")))

    def states(n_steps=int(arrays["N"]), **more):
        return run_sampler(arrays, score, n_steps, **{"weights": arrays.get("lam", (0.0, 0.0)), **more})

    first, shapes, values, n_calls = states()
    last = {
        "out_N100": states(100),
        "out_reverse": states(directions="y"),
        "out_reverse_sdual": states(directions="sequential"),
        "out_zerofilled_init": states(consistent_start=True),
        "out_lambda_0_to_0.5": states(weights=(0.0, 0.5)),
        "out_no_denoise": states(denoise=False),
    }
    return {
        "out": first[-1],
        "x_after_dc": np.stack(first[:-1]),
        "n_noise_draws": np.int64(len(shapes)),
        "noise_draw_shapes": np.array(shapes),
        "noise_draw_first_values": np.array(values, np.float32),
        # The published code computes every score twice.
        "official_model_calls": np.int64(2 * n_calls),
        "official_model_calls_N100": np.int64(2 * last["out_N100"][-1]),
        **{name: result[0][-1] for name, result in last.items()},
    }


def network_sampler_case(arrays, network):
    states = run_sampler(arrays, network.evaluate, int(arrays["N"]))[0]
    return {"out": states[-1], "x_after_dc": np.stack(states[:-1])}


def run_sampler(arrays, score, n_steps, *, directions="both", weights=(0.0, 0.0), consistent_start=False, denoise=True):
    """The states after every data consistency, of the result last; shapes and first values of the noise; scores."""
    process = VarianceExploding(float(arrays["sigma_min"]), float(arrays["sigma_max"]))
    generator = np.random.default_rng(int(arrays["noise_seed"]))
    # Stored as (x, coil, frame, y).
    kspace, maps, mask = (torch.from_numpy(arrays[name]).permute(2, 1, 3, 0) for name in ("k", "csm", "mask"))
    consistency = measurement(kspace, maps, mask[:, 0] > 0.5)
    shapes, values, states, calls = [], [], [], []

    def noise(shape):
        draw = generator.standard_normal(shape).astype(np.float32)
        shapes.append(shape)
        values.append(draw.flat[0])
        return torch.from_numpy(draw)

    def counted(slices, sigma):
        calls.append(sigma)
        return score(slices, sigma)

    def consistent(image):
        step = min(len(states), n_steps - 1)
        weight = weights[0] + (weights[1] - weights[0]) * step / n_steps
        image = consistency.weighted(image, 1 / weight) if weight else consistency.hard(image)
        states.append(to_state(image))
        return image

    frames, _, n_y, n_x = kspace.shape
    start = from_slices(process.sigma_max * noise((n_x, 2, frames, n_y)), "y")
    if consistent_start:
        start = consistency.hard(start)
    schedule = Schedule.published(process, n_steps)
    result = reverse_diffusion(start, counted, consistent, schedule, noise, directions=directions, denoise=denoise)
    if not denoise:
        states.append(to_state(result))
    return states, shapes, values, len(calls)


def gaussian_score(slices, sigma, power, width, rate):
    """The exact score of images that are Gaussian with a spectrum that falls off in time and space."""
    n_frames, n_positions = slices.shape[-2:]
    along_time = torch.fft.fftfreq(n_frames, dtype=torch.float64)[:, None] * n_frames / rate
    along_space = torch.fft.fftfreq(n_positions, dtype=torch.float64) * n_positions / width
    spectrum = power / ((1 + along_space**2) * (1 + along_time**2))
    slices = slices.double()
    expected = torch.fft.ifft2(torch.fft.fft2(slices) * (spectrum / (spectrum + sigma**2))).real
    return ((expected - slices) / sigma**2).float()
