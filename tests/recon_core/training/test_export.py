"""Weights of a finished training."""

import dataclasses

import numpy as np
import pytest
import torch

from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import ModelError, SettingsError
from recon_core.options import ReconOptions
from recon_core.training.coverage import covered
from recon_core.training.export import export
from recon_core.training.library import Library
from recon_core.training.measurements import measure
from recon_core.training.series import draw_series
from recon_core.training.survey import REFERENCE, weigh
from recon_core.training.trainer import Trainer
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import TINY
from tests.recon_core.conftest import centred_fft
from tests.recon_core.training.test_survey import finding
from tests.recon_core.training.test_trainer import small_scans, tiny_plan


@pytest.fixture(autouse=True)
def _small_held_out_scans(monkeypatch):
    monkeypatch.setattr(Trainer, "_validation", small_scans)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "training"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_validation", small_scans)
        trainer = Trainer(tiny_plan(steps=4, validate_every=2), Library(), Library(), folder)
        assert trainer.run()
    return trainer


#: Let a network of a few steps pass for a useful one.
USEFUL = [finding(1e-3, 1e-4, seed) for seed in range(3)]


def test_exported_weights_say_what_they_are(trained, tmp_path):
    entry = export(trained, USEFUL, tmp_path / "weights", source="trained here")
    assert (entry.name, entry.method, entry.start) == ("tiny", "crunet_mr", "cg_sense")
    assert (entry.input_peak, entry.window) == (1, 4)
    assert entry.range == covered(trained.plan)
    assert entry.weighing == weigh(USEFUL).weighing
    assert entry.weighed_on == ()
    assert entry.reference == REFERENCE
    assert entry.metrics["survey"]["scans"] == entry.metrics["survey"]["served"] == 3
    assert entry.metrics["survey"]["median_gain"] > 1
    assert (entry.training["steps"], entry.training["seed"], entry.training["loss"]) == (4, "0", "decibel")
    assert entry.training["data"] == "simulated series"
    assert "CPU" in entry.training["hardware"]
    assert entry.metrics["validation"] == {kind: values[0] for kind, values in trained.validate().items()}
    assert entry.source == "trained here"
    network = load_network(entry, "cpu")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, trained._average.tensors[name])
    assert export(trained, USEFUL, tmp_path / "again", source="trained here").sha256 == entry.sha256


def test_exported_weights_reconstruct(trained, tmp_path, monkeypatch):
    entry = export(trained, USEFUL, tmp_path / "weights")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    found = find_weights("crunet_mr")
    assert dataclasses.replace(found, file=entry.file) == entry

    scan = measure((3,), draw_series((3,), Library(), frames=4, matrix=(24, 24)), n_coils=4, snr=60)
    kspace = np.ascontiguousarray(centred_fft(scan.hybrid.numpy(), -1), np.complex64)
    options = ReconOptions.of(method="crunet_mr", fallback="none", outside_range="note")
    result = Engine("cpu").reconstruct(CineSlice(kspace, scan.mask.numpy()), options)
    assert result.method == "crunet_mr"
    assert any("weights tiny" in note for note in result.notes)
    assert result.image.shape == (4, 24, 24)
    assert np.isfinite(result.image).all()
    assert np.abs(result.image).max() > 0


@pytest.mark.parametrize("method", ["unrolled_resnet3d", "dstdm"])
def test_a_fixed_window_and_the_diffusion_model_are_exported(method, tmp_path):
    trainer = Trainer(tiny_plan(method, steps=1), Library(), Library(), tmp_path / "training")
    trainer.run()
    entry = export(trainer, USEFUL, tmp_path / "weights")
    assert entry.window == 4
    assert load_network(entry, "cpu").config == trainer.network.config
    assert set(TINY[method]) <= set(entry.config)


def test_weights_without_use_are_not_exported(trained, tmp_path):
    with pytest.raises(ModelError, match="not exported"):
        export(trained, [finding(1e-4, 1e-1, seed) for seed in range(3)], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_foreign_file_is_not_replaced(trained, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.safetensors").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="exists and is not in"):
        export(trained, USEFUL, tmp_path / "weights")
    assert (tmp_path / "weights" / "tiny.safetensors").read_bytes() == b"mine"
