"""``cinestream train``."""

import contextlib
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.commands.train import train
from gadgets.images.pictures import GAP
from gadgets.reports.training import write_curves, write_samples
from recon_core.errors import ResourceError
from recon_core.training.library import Library
from recon_core.training.series import KINDS
from recon_core.training.trainer import Trainer
from tests.recon_core.training.test_library import write_folder
from tests.recon_core.training.test_trainer import small_scans, tiny_plan


@pytest.fixture(autouse=True)
def _small_held_out_scans(monkeypatch):
    monkeypatch.setattr(Trainer, "_validation", small_scans)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training, what the command wrote, and its folder."""
    folder, out = tmp_path_factory.mktemp("trained") / "training", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(Trainer, "_validation", small_scans)
        trainer = train(tiny_plan(steps=4, validate_every=2), folder, None, float("inf"))
    return trainer, out.getvalue().splitlines(), folder


# --- the command's parts ----------------------------------------------------------------------------------------------


def test_a_training_says_what_it_does(trained):
    trainer, said, folder = trained
    assert trainer.step == 4
    assert f"tiny: {sum(p.numel() for p in trainer.network.parameters()):,} parameters, step 0 of 4" in said[0]
    assert said[1].startswith("step 4, ")
    assert all(kind in said[1] for kind in KINDS)
    assert said[2] == f"curves in {folder / 'curves.html'}"


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


def test_the_curves_have_the_points_and_other_methods(trained):
    trainer, _, folder = trained
    page = (folder / "curves.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    lines = [text.split('points="')[1].split('"')[0].split() for text in page.split("<polyline ")[1:]]
    assert len(lines) == 1 + 2 * len(KINDS)
    assert {len(line) for line in lines} == {len(trainer.curve())} == {2}
    for kind in KINDS:
        assert f">{kind}</text>" in page
        for method in ("zero_filled", "cg_sense", "kt_sense"):
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
    page = (tmp_path / "none.html").read_text()
    assert "<svg" not in page
    assert "No curves yet" in page
    trainer.run()
    write_curves(tmp_path / "one.html", trainer)
    assert (tmp_path / "one.html").read_text().count("<svg") == 3


def test_names_of_curves_do_not_cover_each_other(trained):
    page = (trained[2] / "curves.html").read_text(encoding="utf-8")
    for plot in page.split("<svg ")[1:]:
        heights = [float(y) for y in re.findall(r'<text x="506" y="([\d.]+)"', plot)]
        assert len(heights) in (1, len(KINDS) * 4)
        assert all(after - before >= 10.9 for before, after in itertools.pairwise(heights))
        assert all(0 < height <= 264 for height in heights)


# --- as a command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_draws_samples_trains_in_parts_and_exports(run, tmp_path, monkeypatch):
    # two steps teach nothing, and what is of no use is not exported
    monkeypatch.setattr("recon_core.training.export.summarise", lambda judged: {"scans": len(judged)})
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "steps: 2\nvalidate_every: 2\nlines: [24, 24]\nframes: [8, 8]\nwidth: 8\nsurvey: 2\n"
        "network: {cascades: 1, channels: 4}\n"
    )
    sheet, folder, weights = tmp_path / "samples.png", tmp_path / "training", tmp_path / "weights"
    status, out, _ = run("train", "crunet_mr", "--samples", sheet)
    assert (status, sheet.read_bytes()[:4]) == (0, b"\x89PNG")
    assert "samples in" in out
    arguments = ("train", "crunet_mr", "--folder", folder, "--config", plan, "--weights-folder", weights)
    status, out, _ = run(*arguments, "--minutes", "0")
    assert status == 0
    assert "to be continued by the same command" in out
    status, out, _ = run(*arguments)
    assert status == 0
    assert "weights=crunet_mr-small" in out
    assert (weights / "crunet_mr-small.safetensors").is_file()
    assert (folder / "curves.html").is_file()


def test_train_needs_somewhere_to_keep_its_state(run):
    status, _, err = run("train", "crunet_mr")
    assert status == 2
    assert "--folder" in err


# --- the sheet of samples ---------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_a_sheet_of_images(sheet, tmp_path):
    write_samples(tmp_path / "b.png", write_folder(tmp_path / "data"))
    assert sheet != (tmp_path / "b.png").read_bytes()


def test_a_sheet_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("gadgets.reports.training.KINDS", KINDS[:1])
    with pytest.raises(ResourceError, match="cannot write"):
        write_samples(tmp_path / "nowhere" / "a.png", None)
