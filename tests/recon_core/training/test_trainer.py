import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from recon_core.errors import DataError, ModelError, ResourceError, SettingsError
from recon_core.inference.start import with_start
from recon_core.methods import method_names
from recon_core.networks.cst_net import normalise
from recon_core.physics.consistency import DataConsistency
from recon_core.simulate.sampling import interleaved_mask
from recon_core.training import trainer as module
from recon_core.training.images import reconstruct_series
from recon_core.training.library import Library
from recon_core.training.losses import LOSSES
from recon_core.training.measurements import measure
from recon_core.training.objectives import image_objective
from recon_core.training.plan import TrainingPlan, presets
from recon_core.training.series import KINDS, draw_series, sharpened
from recon_core.training.trainer import Trainer, draw_scan, scores
from recon_core.weights.config import build_network
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import NETWORKS, TINY, write_tiny_chain, write_tiny_weights

ORIGINAL_VALIDATION = Trainer._validation


def small_scans(_):
    """Held-out scans, drawn once."""
    return iter(_drawn_scans())


@functools.cache
def _drawn_scans():
    return tuple(_draw_scans())


def _draw_scans():
    for number, kind in enumerate(KINDS):
        series = draw_series((77, number), Library(), kind=kind, frames=4, matrix=(24, 24))
        scan = measure((77, number), series, mask=interleaved_mask(4, 24, 4), n_coils=4, snr=40)
        yield dataclasses.replace(scan, family=kind)


@pytest.fixture(autouse=True)
def _small_held_out_scans(monkeypatch):
    monkeypatch.setattr(Trainer, "_validation", small_scans)


def tiny_plan(method="crunet_mr", **changes):
    values = {
        "name": "tiny",
        "network": TINY[method],
        "steps": 3,
        "frames": (4, 4),
        "lines": (32, 32) if "resnet3d" in method else (24, 24),  # of less, the deepest features are one pixel
        "width": 8,
        "crops": 2,
        "start": "kt_sense" if method == "dstdm" else "cg_sense",
        "warm_up": 0,
        "average": 0.5,
        "precision": "float32",
        "validate_every": 1000,
    }
    return TrainingPlan(method=method, **{**values, **changes})


def trainer_of(folder, method="crunet_mr", **changes):
    return Trainer(tiny_plan(method, **changes), Library(), Library(), folder)


def test_training_goes_on_from_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    write_tiny_weights(tmp_path / "weights", "crunet_mr", name="first")
    begun = trainer_of(tmp_path / "training", begin_with="first")
    former = load_network(find_weights("crunet_mr", "first"), "cpu")
    for ours, theirs in zip(begun.network.parameters(), former.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad
    assert begun.run()
    changed = zip(begun.network.parameters(), former.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in changed)


def test_weights_of_another_network_are_no_beginning(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    write_tiny_weights(tmp_path / "weights", "crunet_mr", name="first")
    wider = {**TINY["crunet_mr"], "channels": 2 * TINY["crunet_mr"]["channels"]}
    with pytest.raises(SettingsError, match="weights first are of another network than the plan's: expected network"):
        trainer_of(tmp_path / "training", begin_with="first", network=wider)
    with pytest.raises(ModelError, match="absent"):
        trainer_of(tmp_path / "training", begin_with="absent")


def copied(network):
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


class EnoughError(Exception):
    pass


def stop_after(last):
    def tell(step, _):
        if step == last:
            raise EnoughError

    return tell


# --- learning ---------------------------------------------------------------------------------------------------------


def learns(trainer):
    """Take the two steps of a training, and find the parameters changed."""
    before = copied(trainer.network)
    losses = []
    assert trainer.run(report=lambda _, loss: losses.append(loss))
    assert len(losses) == trainer.step == 2
    assert np.isfinite(losses).all()
    parameters = dict(trainer.network.named_parameters())
    changed = [not torch.equal(parameters[name], before[name]) for name in parameters]
    assert np.mean(changed) > 0.5
    assert all(parameter.isfinite().all() for parameter in parameters.values())


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("cst_net", "promptmr"))) for name in NETWORKS],
)
def test_every_network_learns(method, tmp_path):
    learns(trainer_of(tmp_path, method, steps=2))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("crunet_mr", "unrolled_resnet3d", "atlf_net")))
        for name in method_names(lambda info: info.network and info.points)
    ],
)
def test_a_network_learns_from_points(method, tmp_path):
    trainer = trainer_of(tmp_path, method, steps=2, points=1.0)
    assert trainer._measured(0).family == "points"
    learns(trainer)


def test_a_plan_draws_lines_or_points():
    assert draw_scan((3, 1), tiny_plan(), Library()).mask.ndim == 2
    assert draw_scan((3, 1), tiny_plan(points=1.0), Library()).mask.ndim == 3


@pytest.mark.parametrize("least", [24, 152])
def test_scans_of_points_whose_columns_a_step_sees_are_small(least):
    plan = tiny_plan(points=1.0, lines=(least, 400), frames=(1, 1))
    for number in range(6):
        assert max(draw_scan((3, number), plan, Library()).mask.shape) <= max(least, 150)


def test_scans_are_of_series_of_all_kinds_of_sharpness(monkeypatch):
    strengths = []
    monkeypatch.setattr(module, "sharpened", lambda series, by: (strengths.append(by), sharpened(series, by))[1])
    scans = [draw_scan((3, number), tiny_plan(), Library()) for number in range(8)]
    assert 0 <= min(strengths) < 1
    assert 2 < max(strengths) <= 3
    series = sharpened(draw_series((3, 1), Library(), frames=4, matrix=(24, 24)), strengths[1])
    assert torch.equal(scans[1].hybrid, measure((3, 1), series).hybrid)


@pytest.mark.parametrize(
    "method", ["crunet_mr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unrolled_resnet3d", "dstdm"))]
)
def test_a_training_taken_up_again_is_the_same_as_one_without_a_break(method, tmp_path):
    whole = trainer_of(tmp_path / "whole", method, steps=5, schedule="cosine")
    whole.run()
    first = trainer_of(tmp_path / "parts", method, steps=5, schedule="cosine")
    with pytest.raises(EnoughError):
        first.run(report=stop_after(3))
    first.save()
    torch.rand(7)  # something else that draws random numbers in between
    second = trainer_of(tmp_path / "parts", method, steps=5, schedule="cosine")
    assert second.step == 3
    assert second.run()
    for name, tensor in copied(whole.network).items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    for name, tensor in whole._average.tensors.items():
        assert torch.equal(tensor, second._average.tensors[name]), name
    assert second.seconds > first.seconds
    assert trainer_of(tmp_path / "parts", method, steps=5, schedule="cosine").run()  # nothing is left to do


def test_another_seed_learns_something_else(tmp_path):
    weights = []
    for seed in (0, 0, 1):
        trainer = trainer_of(tmp_path / f"{len(weights)}", seed=seed, steps=1)
        trainer.run()
        weights.append(torch.cat([tensor.flatten() for tensor in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_the_loss_falls_on_one_scan(tmp_path):
    trainer = trainer_of(tmp_path, steps=40, crops=40, width=24, rate=5e-3, start="zero_filled", seed=1)
    losses = []
    trainer.run(report=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1  # 1 dB


def test_bfloat16_learns_too(tmp_path):
    trainer = trainer_of(tmp_path, precision="bfloat16", steps=1)
    trainer.run()
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_normalisation_stands_still_when_it_is_frozen(tmp_path):
    trainer = trainer_of(tmp_path, "dual_unet_resnet3d", steps=4, frozen_norm=0.5)
    norms = [part for part in trainer.network.modules() if isinstance(part, nn.BatchNorm2d)]
    means = []
    trainer.run(report=lambda *_: means.append(torch.cat([norm.running_mean.clone() for norm in norms])))
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert torch.equal(means[2], means[3])


def test_the_time_is_kept(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    trainer = trainer_of(tmp_path, steps=50)
    assert not trainer.run(seconds=75)
    assert 0 < trainer.step < 5
    again = trainer_of(tmp_path, steps=50)
    assert (again.step, again.seconds) == (trainer.step, trainer.seconds)
    assert again.seconds > 0


def test_the_state_is_saved_on_the_way(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    trainer = trainer_of(tmp_path, steps=50)
    with pytest.raises(EnoughError):
        trainer.run(report=stop_after(4))
    assert 1 <= trainer_of(tmp_path, steps=50).step <= 3


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_another_plan_in_the_same_folder_is_refused_with_both_values(tmp_path):
    trainer_of(tmp_path, steps=1).run()
    with pytest.raises(SettingsError, match=r"another plan \(rate 0\.001, now 0\.002\)"):
        trainer_of(tmp_path, steps=1, rate=2e-3)
    with pytest.raises(SettingsError, match=r"lines \[24, 24\], now \[24, 26\]"):
        trainer_of(tmp_path, steps=1, lines=(24, 26))
    with pytest.raises(SettingsError, match="method 'crunet_mr', now 'crnn_mri'"):
        trainer_of(tmp_path, "crnn_mri", steps=1)


def test_a_field_that_an_earlier_version_did_not_have_counts_as_its_default(tmp_path):
    trainer_of(tmp_path, steps=1).run()
    path = tmp_path / "checkpoint" / "state.json"
    index = json.loads(path.read_text())
    del index["facts"]["plan"]["clip"], index["facts"]["updates"]
    path.write_text(json.dumps(index))
    assert trainer_of(tmp_path, steps=1).step == 1
    with pytest.raises(SettingsError, match=r"clip 1\.0, now 0\.5"):
        trainer_of(tmp_path, steps=1, clip=0.5)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, steps=4)
    with pytest.raises(EnoughError):
        trainer.run(report=stop_after(2))
    trainer.save()
    kept = copied(trainer.network)
    monkeypatch.setitem(LOSSES, "decibel", lambda image, target: (image - target).abs().sum() * float("nan"))
    with pytest.raises(DataError, match=r"the loss of step 2 is not finite; lower the rate \(0\.001\)"):
        trainer.run()
    again = trainer_of(tmp_path, steps=4)
    assert again.step == 2
    for name, tensor in copied(again.network).items():
        assert torch.equal(tensor, kept[name])


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    trainer = trainer_of(tmp_path, steps=2)
    before = copied(trainer.network)
    hook = next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    assert trainer.run()
    hook.remove()
    for name, tensor in copied(trainer.network).items():
        assert torch.equal(tensor, before[name])
    again = trainer_of(tmp_path, steps=2)
    assert again.step == 2
    assert again._average.state_dict()["n_updates"] == 0


def test_a_damaged_curve_is_reported(tmp_path):
    trainer = trainer_of(tmp_path, steps=1)
    trainer.run()
    (tmp_path / "curve.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ResourceError, match=r"cannot read the curve .*curve\.jsonl"):
        trainer.curve()


# --- held-out scans ---------------------------------------------------------------------------------------------------


def test_the_running_average_is_what_is_watched(tmp_path):
    trainer = trainer_of(tmp_path, steps=3, rate=0.02)
    trainer.run()
    last = copied(trainer.network)
    average = build_network("crunet_mr", TINY["crunet_mr"]).eval()
    average.load_state_dict(trainer._average.tensors)

    def watched(network):
        with torch.inference_mode():
            scans = [scan.started("cg_sense") for scan in small_scans(trainer)]
            images = {scan.family: reconstruct_series(network, scan) for scan in scans}
        return {scan.family: scores(images[scan.family].numpy(), scan.target.numpy()) for scan in small_scans(trainer)}

    assert trainer.validate() == watched(average)
    assert watched(average) != watched(trainer.network.eval())
    with trainer.averaged() as network:
        assert not network.training
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, average.get_parameter(name))
    for name, tensor in copied(trainer.network).items():
        assert torch.equal(tensor, last[name])


def test_points_of_the_curve(tmp_path):
    trainer = trainer_of(tmp_path, steps=5, validate_every=2)
    losses = []
    with pytest.raises(EnoughError):
        trainer.run(report=lambda step, loss: (losses.append(loss), stop_after(3)(step, loss)))
    assert [point.step for point in trainer.curve()] == [2]
    assert trainer.curve()[0].loss == pytest.approx(np.mean(losses[:2]))
    again = trainer_of(tmp_path, steps=5, validate_every=2)  # nothing was saved, so it begins once more
    assert again.step == 0
    assert again.run()
    points = again.curve()
    assert [point.step for point in points] == [2, 4, 5]
    assert all(list(point.psnr) == list(KINDS) for point in points)
    assert all(isinstance(values, tuple) and len(values) == 2 for values in points[-1].psnr.values())
    assert points[-1].psnr == again.validate()
    assert points[0].seconds <= points[1].seconds <= points[2].seconds
    assert points[0].loss == pytest.approx(np.mean(losses[:2]))


def test_other_methods_are_compared_on_the_same_scans(tmp_path):
    trainer = trainer_of(tmp_path)
    zero_filled, cg_sense = (trainer.compare(method) for method in ("zero_filled", "cg_sense"))
    assert list(zero_filled) == list(cg_sense) == list(KINDS)
    assert np.mean([cg_sense[kind][0] - zero_filled[kind][0] for kind in KINDS]) > 2


def test_the_scans_that_are_held_out(tmp_path):
    trainer = trainer_of(tmp_path)
    scan = next(ORIGINAL_VALIDATION(trainer))
    again = next(ORIGINAL_VALIDATION(trainer_of(tmp_path, seed=5)))
    assert scan.family == "cine"
    assert scan.hybrid.shape == (16, 8, 128, 96)
    assert torch.equal(scan.hybrid, again.hybrid)  # of whatever training


def test_scores_ignore_the_scale():
    scan = next(small_scans(None))
    target = scan.target.numpy()
    image = target + 0.05 * np.abs(target).max() * np.exp(1j * np.arange(24))
    assert scores(image, target) == scores(3 * image, target)
    assert scores(image, target)[0] > 20
    assert scores(np.complex64(target + 0.2), target)[0] < scores(image, target)[0] + 20


# --- crops and CT -----------------------------------------------------------------------------------------------------


def test_crops_are_where_the_signal_is():
    target = torch.zeros(2, 5, 60, dtype=torch.complex64)
    target[..., 25:35] = 1
    rng = np.random.default_rng(0)
    places = {module.place_of_crop(target, 8, rng) for _ in range(200)}
    assert places == set(range(18, 35))
    everywhere = {module.place_of_crop(torch.ones(2, 5, 20, dtype=torch.complex64), 8, rng) for _ in range(200)}
    assert everywhere == set(range(13))
    assert module.place_of_crop(torch.zeros(2, 5, 8, dtype=torch.complex64), 8, rng) == 0


def test_a_start_that_is_not_there_is_known_before_the_training(tmp_path):
    with pytest.raises(SettingsError, match="a network cannot start from 'kt_sens'; did you mean kt_sense"):
        trainer_of(tmp_path, start="kt_sens")


@pytest.mark.parametrize("first", ["crunet_mr", "promptmr"])
def test_weights_to_start_from_are_looked_at_before_the_training(first, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    write_tiny_chain(tmp_path / "weights", first, "unet3d_mr")
    if first == "promptmr":
        with pytest.raises(SettingsError, match="points must be 0 with start first: promptmr needs whole lines"):
            trainer_of(tmp_path, start="first", points=0.5)
    assert trainer_of(tmp_path, start="first", points=0.0 if first == "promptmr" else 0.5).step == 0
    (tmp_path / "weights" / "first.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"'first', .* are not those of the manifest"):
        trainer_of(tmp_path, start="first")


def test_dropout_is_the_same_after_a_break_where_weights_are_started_from(tmp_path, monkeypatch):
    """Their network is built for each scan, with random numbers; the break is in the middle of one."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    write_tiny_chain(tmp_path / "weights", "crunet_mr", "unet3d_mr")
    method, network = "dual_unet_resnet3d", {**TINY["dual_unet_resnet3d"], "dropout": 0.5}
    changes = {"network": network, "start": "first", "steps": 2}
    whole = trainer_of(tmp_path / "whole", method, **changes)
    whole.run()
    first = trainer_of(tmp_path / "parts", method, **changes)
    with pytest.raises(EnoughError):
        first.run(report=stop_after(1))
    first.save()
    second = trainer_of(tmp_path / "parts", method, **changes)
    assert second.run()
    for name, tensor in copied(whole.network).items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_layers_that_begin_at_zero_leave_the_start_alone(tmp_path):
    zeroed = ("cascades.*.unet_*.conv.*",)
    network = Trainer(tiny_plan("unrolled_resnet3d", zeroed=zeroed), Library(), Library(), tmp_path).network
    last = [value for name, value in network.named_parameters() if ".conv." in name and ".unet_" in name]
    assert last
    assert not any(value.any() for value in last)
    assert network.cascades[0].unet_real.pre_conv.weight.any()
    with pytest.raises(SettingsError, match=r"zeroed names no parameter by 'cascades\.\?\.end'; there are such as"):
        Trainer(tiny_plan("unrolled_resnet3d", zeroed=("cascades.?.end",)), Library(), Library(), tmp_path)


def test_cst_net_begins_with_its_start_made_consistent(tmp_path):
    short = presets("short")["cst_net"]
    trainer = trainer_of(tmp_path, "cst_net", zeroed=tuple(short["zeroed"]), passing=tuple(short["passing"]))
    scan = trainer._measured(0)
    data = with_start(scan.slice(), "cg_sense")
    consistency = DataConsistency(data.maps, data.mask, data.hybrid)
    with torch.inference_mode():
        image, expected, stages = trainer.network.reconstruct(data), data.start, []
        for count in (5, 5, 4):  # transformers and recurrences of the stages; measured samples replaced after each
            for _ in range(count):
                expected = normalise(consistency.hard(expected), consistency)
            stages.append(expected)
        expected = normalise(consistency.hard(torch.stack(stages).mean(0)), consistency)
    torch.testing.assert_close(image, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("embedding.bias", r"passing names no parameter"), ("*.qkv.weight", r"passing names .*qkv.weight, which is no")],
)
def test_what_cannot_pass_images_on(pattern, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        trainer_of(tmp_path, "cst_net", passing=(pattern,))


def test_a_network_of_few_frames_learns_from_windows_of_longer_series(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, "unrolled_resnet3d", frames=(8, 8))
    whole = with_start(trainer._measured(0).slice(), "cg_sense")
    assert len(whole.hybrid) == 8
    seen = []
    monkeypatch.setattr(trainer.network, "reconstruct", lambda data: seen.append(data) or data.start)
    loss = image_objective(trainer.network, trainer._measured(0), "squared", np.random.default_rng(3))
    first = int(np.random.default_rng(3).integers(8))
    frames = [(first + number) % 8 for number in range(4)]
    assert torch.equal(seen[0].start, whole.start[frames])  # made of all frames
    assert torch.equal(seen[0].hybrid, whole.hybrid[frames])
    assert torch.equal(seen[0].mask, whole.mask[frames])
    assert loss == LOSSES["squared"](whole.start[frames], trainer._measured(0).target[frames])
