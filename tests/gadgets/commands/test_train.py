import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from gadgets.commands.train import train
from gadgets.pictures import GAP
from gadgets.reports.training import write_curves, write_samples
from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.options import ReconOptions
from recon_core.simulate.sampling import uniform_mask
from recon_core.training.coverage import covered
from recon_core.training.export import export
from recon_core.training.library import Library
from recon_core.training.measurements import measure
from recon_core.training.series import KINDS, draw_series
from recon_core.training.survey import Finding
from recon_core.training.trainer import Trainer
from recon_core.trust.ranges import ImageFigures, Limits, Sampling
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import TINY
from tests.recon_core.conftest import centred_fft
from tests.recon_core.training.test_library import write_folder
from tests.recon_core.training.test_trainer import small_scans, tiny_plan


@pytest.fixture(autouse=True)
def _small_held_out_scans(monkeypatch):
    monkeypatch.setattr(Trainer, "_validation", small_scans)


@pytest.fixture
def trained(tmp_path, capsys):
    trainer = train(tiny_plan(steps=4, validate_every=2), tmp_path / "training", None, float("inf"))
    return trainer, capsys.readouterr().out.splitlines()


# --- the command's parts ----------------------------------------------------------------------------------------------


def test_a_training_says_what_it_does(trained, tmp_path):
    trainer, said = trained
    assert trainer.step == 4
    assert f"tiny: {sum(p.numel() for p in trainer.network.parameters()):,} parameters, step 0 of 4" in said[0]
    assert said[1].startswith("step 4, ")
    assert all(kind in said[1] for kind in KINDS)
    assert said[2] == f"curves in {tmp_path / 'training' / 'curves.html'}"


def test_a_training_without_time_is_taken_up_later(tmp_path):
    plan = tiny_plan(steps=3)
    assert train(plan, tmp_path, None, 0.0) is None
    trainer = train(plan, tmp_path, None, float("inf"))
    assert trainer.step == 3
    assert (tmp_path / "curves.html").is_file()


def test_images_are_read_from_the_folder_for_either_part(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    seen = []
    original = Trainer.__init__

    def watched(self, plan, library, held_out, where):
        seen.append((len(library.cines), len(held_out.cines)))
        original(self, plan, library, held_out, where)

    monkeypatch.setattr(Trainer, "__init__", watched)
    train(tiny_plan(steps=1), tmp_path / "training", folder, 0.0)
    assert seen == [(15, 9)]
    with pytest.raises(ResourceError, match="no images for the training part"):
        train(tiny_plan(steps=1), tmp_path / "training", tmp_path, 0.0)


def test_the_curves_have_the_points_and_other_methods(trained, tmp_path):
    trainer, _ = trained
    page = (tmp_path / "training" / "curves.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    lines = [text.split('points="')[1].split('"')[0].split() for text in page.split("<polyline ")[1:]]
    assert len(lines) == 1 + 2 * len(KINDS)
    assert {len(line) for line in lines} == {len(trainer.curve())} == {2}
    for kind in KINDS:
        assert f">{kind}</text>" in page
        for method in ("zero_filled", "cg_sense", "low_rank_sparse"):
            assert page.count(f"{method}, {kind}") == 2
    losses = [point.loss for point in trainer.curve()]
    heights = [float(place.split(",")[1]) for place in lines[0]]
    assert (losses[0] < losses[1]) == (heights[0] > heights[1])  # up is down in SVG
    for value in losses:
        assert f">{value:.3g}</text>" in page
    assert "nan" not in page


def test_curves_without_points_and_of_one_point(tmp_path):
    trainer = Trainer(tiny_plan(steps=1), Library(), Library(), tmp_path)
    write_curves(tmp_path / "none.html", trainer)
    assert "<svg" not in (tmp_path / "none.html").read_text()
    trainer.run()
    write_curves(tmp_path / "one.html", trainer)
    assert (tmp_path / "one.html").read_text().count("<svg") == 3
    diffusion = Trainer(tiny_plan("dstdm", steps=1), Library(), Library(), tmp_path / "d")
    diffusion.run()
    write_curves(tmp_path / "loss.html", diffusion)
    assert (tmp_path / "loss.html").read_text().count("<svg") == 1


# --- weights ----------------------------------------------------------------------------------------------------------


def findings(gains, lines=24):
    scan = Sampling.of(uniform_mask(4, lines, 2, 8), 8, 24, 40.0)
    return [Finding(scan, gain, ImageFigures(residual=0.1, change=0.3)) for gain in gains]


def useful(trainer):
    """Let a network of a few steps pass for a useful one."""
    return findings((0.5, -0.1), trainer.plan.lines[0])


def test_exported_weights_say_what_they_are(trained, tmp_path):
    trainer, _ = trained
    entry = export(trainer, useful(trainer), tmp_path / "weights", source="trained here")
    assert (entry.name, entry.method, entry.start) == ("tiny", "crunet_mr", "cg_sense")
    assert (entry.input_peak, entry.window) == (1, 4)
    assert entry.range == covered(trainer.plan)
    assert entry.limits == Limits(residual=0.12, change=0.36)
    assert entry.metrics["survey"] == {"scans": 2, "of": 2, "median_gain": 0.2, "least_gain": -0.1}
    assert (entry.training["steps"], entry.training["seed"], entry.training["loss"]) == (4, "0", "decibel")
    assert entry.training["data"] == "simulated series"
    assert "CPU" in entry.training["hardware"]
    assert entry.metrics["validation"] == {kind: values[0] for kind, values in trainer.validate().items()}
    assert entry.source == "trained here"
    network = load_network(entry, "cpu")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, trainer._average.tensors[name])
    assert export(trainer, useful(trainer), tmp_path / "again", source="trained here").sha256 == entry.sha256


def test_exported_weights_reconstruct(trained, tmp_path, monkeypatch):
    trainer, _ = trained
    entry = export(trainer, useful(trainer), tmp_path / "weights")
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
    entry = export(trainer, useful(trainer), tmp_path / "weights")
    assert entry.window == 4
    assert load_network(entry, "cpu").config == trainer.network.config
    assert set(TINY[method]) <= set(entry.config)


def test_weights_without_use_are_not_exported(trained, tmp_path):
    trainer, _ = trained
    with pytest.raises(ModelError, match="not exported"):
        export(trainer, findings([-3.0]), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_foreign_file_is_not_replaced(trained, tmp_path):
    trainer, _ = trained
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.safetensors").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="exists and is not in"):
        export(trainer, useful(trainer), tmp_path / "weights")
    assert (tmp_path / "weights" / "tiny.safetensors").read_bytes() == b"mine"


# --- the sheet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "plain.png"
    write_samples(path, None)
    return path.read_bytes()


@pytest.mark.slow
def test_a_sheet_is_the_same_for_the_same_seed(sheet, tmp_path):
    write_samples(tmp_path / "b.png", None)
    write_samples(tmp_path / "c.png", None, seed=1)
    assert sheet == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_sheet_needs_no_images(sheet):
    picture = Picture.open(io.BytesIO(sheet))
    rows = 4 * len(KINDS)
    assert picture.format == "PNG"
    assert picture.size == (64 + 6 * (128 + GAP) - GAP, 22 + rows * (128 + GAP) - GAP)
    pixels = np.asarray(picture)
    tiles = [
        pixels[22 + row * (128 + GAP) :, 64 + column * (128 + GAP) :][:128, :128]
        for row in range(rows)
        for column in range(6)
    ]
    assert all(tile.shape == (128, 128) and tile.max() > 100 for tile in tiles)
    for lines in tiles[5::6]:  # of 16 frames, as wide as the images
        assert set(np.unique(lines)) <= {0, 255}
        assert (lines.reshape(128, 16, 8) == lines.reshape(128, 16, 8)[..., :1]).all()
        assert lines[:, -8:].any() or lines[:, :8].any()
    assert pixels[:22].max() > 200  # names of the columns
    assert pixels[:, :64].max() > 200  # and of the rows


def test_a_sheet_of_images(sheet, tmp_path):
    write_samples(tmp_path / "b.png", write_folder(tmp_path / "data"))
    assert sheet != (tmp_path / "b.png").read_bytes()


def test_a_sheet_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ResourceError, match="cannot write"):
        write_samples(tmp_path / "nowhere" / "a.png", None)
