"""What may come in that no network was made for: each gives a clear error, or what its documentation says."""

import functools

import numpy as np
import pytest
import torch

from recon_core.coils.calibration import time_average
from recon_core.data import CineSlice, HybridSlice
from recon_core.engine import Engine
from recon_core.errors import DataError, ModelError
from recon_core.inference.method import NetworkMethod
from recon_core.options import NetworkOptions, ReconOptions
from recon_core.simulate.sampling import interleaved_mask
from recon_core.weights.loading import import_weights
from tests.helpers.networks import NETWORKS, TINY, tiny, write_tiny_weights

pytestmark = [pytest.mark.parametrize("name", NETWORKS), pytest.mark.usefixtures("_coil_maps_once")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    write_tiny_weights(path)
    return path


@pytest.fixture(autouse=True)
def _weights(folder, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(folder))


def kspace(n_frames=6, n_coils=3, n_y=20, n_x=16, step=2):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((n_frames, n_coils, n_y, n_x, 2), np.float32).view(np.complex64)[..., 0]
    mask = interleaved_mask(n_frames, n_y, min(step, n_y))
    mask[:, n_y // 2 - n_y // 6 : n_y // 2 + n_y // 6 + 1] = True
    return values * mask[:, None, :, None], mask


def reconstruct(name, values, mask, **options):
    few = {"method": name, "fallback": "none", "outside_range": "note", "sampler_steps": 4}  # nothing was learned
    options = ReconOptions.of(**few, **options)
    return Engine("cpu").reconstruct(CineSlice(values, mask), options).image


@functools.cache
def usual_image(name):
    return reconstruct(name, *kspace())


@pytest.mark.parametrize("n_frames", [1, pytest.param(2, marks=pytest.mark.slow)])  # the other tests have 6
def test_few_frames(name, n_frames):
    values, mask = kspace(n_frames)
    image = reconstruct(name, values, mask)
    assert image.shape == (n_frames, 20, 16)
    assert np.isfinite(image).all()
    assert (image != 0).any()


@pytest.mark.parametrize(("n_y", "n_x"), [(1, 1), pytest.param(2, 3, marks=pytest.mark.slow), (33, 17)])
def test_odd_and_tiny_images(name, n_y, n_x):
    values, mask = kspace(n_y=n_y, n_x=n_x)
    image = reconstruct(name, values, mask)
    assert image.shape == (6, n_y, n_x)
    assert np.isfinite(image).all()


@pytest.mark.parametrize("n_coils", [1, 33])
def test_any_number_of_coils(name, n_coils):
    values, mask = kspace(n_coils=n_coils)
    image = reconstruct(name, values, mask)
    assert np.isfinite(image).all()
    assert (image != 0).any()


def test_frames_without_samples(name):
    values, mask = kspace()
    values[::2], mask[::2] = 0, False
    image = reconstruct(name, values, mask)
    assert np.isfinite(image).all()
    assert (image[1::2] != 0).any()


def test_a_dead_coil(name):
    values, mask = kspace()
    values[:, 1] = 0
    assert np.isfinite(reconstruct(name, values, mask)).all()


@pytest.mark.parametrize("sampled", [True, False])
def test_no_signal_gives_no_image(name, sampled):
    values, mask = kspace()
    image = reconstruct(name, np.zeros_like(values), mask & sampled)
    assert image.shape == (6, 20, 16)
    assert not (image != 0).any()


@pytest.mark.parametrize("scale", [1e-9, pytest.param(1e9, marks=pytest.mark.slow)])
def test_any_unit(name, scale):
    values, mask = kspace()
    image = usual_image(name)
    scaled = reconstruct(name, (scale * values).astype(np.complex64), mask) / scale
    assert np.abs(scaled - image).max() < 1e-3 * np.abs(image).max()


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_data_that_are_not_finite(name, what):
    values, mask = kspace()
    line = int(np.flatnonzero(mask[2])[0])
    values[2, 1, line, 3] = what
    with pytest.raises((DataError, ModelError), match="finite"):
        reconstruct(name, values, mask)


def hybrid(**more):
    values, mask = (torch.from_numpy(array) for array in kspace())
    maps = torch.full((3, 20, 16), 3**-0.5, dtype=torch.complex64)
    reference, measured = time_average(values, mask)
    return HybridSlice(
        **{"hybrid": values, "mask": mask, "maps": maps, "reference": reference, "measured": measured} | more
    )


@pytest.mark.parametrize(
    "more",
    [
        {"mask": torch.ones(6, 19, dtype=torch.bool)},
        {"mask": torch.ones(5, 20, dtype=torch.bool)},
        {"maps": torch.ones(3, 20, 15, dtype=torch.complex64)},
        {"maps": torch.ones(4, 20, 16, dtype=torch.complex64)},
    ],
    ids=["lines", "frames", "samples", "coils"],
)
def test_arrays_that_do_not_belong_together(name, more):
    with torch.inference_mode(), pytest.raises(DataError, match=r"20"):
        tiny(name).reconstruct(hybrid(**more))


def test_maps_on_another_device(name):
    maps = torch.ones(3, 20, 16, dtype=torch.complex64, device="meta")
    with torch.inference_mode(), pytest.raises(DataError, match="meta"):
        tiny(name).reconstruct(hybrid(maps=maps))


WIDER = {
    name: {field: 2 * config[field] for field in ("channels", "features") if field in config}
    for name, config in TINY.items()
}


def test_a_checkpoint_of_another_width(name, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(dict(tiny(name).state_dict()), path)
    with pytest.raises(ModelError, match="shape"):
        import_weights(name, path, folder=tmp_path / "weights", config={**TINY[name], **WIDER[name]})
    assert not (tmp_path / "weights").exists()


def test_a_checkpoint_of_another_method(name, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"first.weight": torch.ones(3, 3), "first.bias": torch.ones(3)}, path)
    with pytest.raises(ModelError, match="does not fit"):
        import_weights(name, path, folder=tmp_path / "weights", config=TINY[name])
    other = tiny(NETWORKS[NETWORKS.index(name) - 1])
    torch.save({other.authors_key(key): value for key, value in other.state_dict().items()}, path)
    with pytest.raises(ModelError, match="does not fit"):
        import_weights(name, path, folder=tmp_path / "weights", config=TINY[name])


def test_no_weights(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match=f"cinestream import-weights {name}"):
        NetworkMethod(name, NetworkOptions())
