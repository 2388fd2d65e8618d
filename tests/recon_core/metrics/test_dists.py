import numpy as np
import pytest
import torch
from safetensors import torch as safetensors

from recon_core.errors import DataError, ModelError
from recon_core.metrics.dists import Dists, load_dists, weight_shapes


@pytest.fixture(scope="module")
def weights():
    """Random weights that keep the variance from layer to layer; the trained ones are not here."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name, shape in weight_shapes().items():
        if name in ("alpha", "beta"):
            made[name] = torch.rand(shape, generator=generator)
        elif name.endswith("bias"):
            made[name] = torch.zeros(shape)
        else:
            made[name] = torch.randn(shape, generator=generator) * (2 / (9 * shape[1])) ** 0.5
    return made


@pytest.fixture(scope="module")
def network(weights):
    return Dists(weights)


@pytest.fixture
def series():
    return np.random.default_rng(2).uniform(0, 5, (2, 24, 19)).astype(np.float32)


def test_shapes_are_those_of_vgg16():
    shapes = weight_shapes()
    convolutions = [shape for name, shape in shapes.items() if name.startswith("features") and name.endswith("weight")]
    assert len(convolutions) == 13
    assert sum(np.prod(shape) for name, shape in shapes.items() if name.startswith("features")) == 14_714_688
    assert shapes["alpha"] == shapes["beta"] == (1475,)


def test_a_perfect_image_is_at_no_distance(network, series):
    assert network(series, series) == pytest.approx(0, abs=1e-5)
    assert network(series * np.exp(0.4j), series) == pytest.approx(0, abs=1e-5)


def test_distance_grows_with_noise_and_stays_below_one(network, series):
    noise = np.random.default_rng(3).standard_normal(series.shape)
    distances = [network(series + sigma * noise, series) for sigma in (0.05, 0.5, 5)]
    assert 0 < distances[0] < distances[1] < distances[2] < 1


def test_distance_is_symmetric_and_the_mean_of_frames(network, series):
    other = np.random.default_rng(4).permuted(series, axis=2)
    assert network(series, other) == pytest.approx(network(other, series), abs=1e-6)
    series[:, 0, 0] = other[:, 0, 0] = 6  # both frames in the range of the series
    both = network(other, series)
    assert both == pytest.approx(np.mean([network(other[i : i + 1], series[i : i + 1]) for i in (0, 1)]), abs=1e-6)


def test_with_the_image_alone_it_is_the_formula(weights, series):
    """All weight on the three channels of the image itself leaves a comparison of means and covariances."""
    plain = {**weights, "alpha": torch.zeros(1475), "beta": torch.zeros(1475)}
    plain["alpha"][:3], plain["beta"][:3] = 1.0, 2.0
    other = np.random.default_rng(5).uniform(0, 5, series.shape)
    ours, theirs = other[0] / series[:1].max(), series[0] / series[:1].max()
    (a, c), (_, b) = np.cov(ours.ravel(), theirs.ravel(), bias=True)
    texture = (2 * ours.mean() * theirs.mean() + 1e-6) / (ours.mean() ** 2 + theirs.mean() ** 2 + 1e-6)
    structure = (2 * c + 1e-6) / (a + b + 1e-6)
    expected = 1 - (texture + 2 * structure) / 3
    assert Dists(plain)(other[:1], series[:1]) == pytest.approx(expected, abs=1e-5)


def test_pooling_is_the_root_of_hann_weighted_mean_squares(network):
    layer = torch.zeros(1, 2, 6, 6)
    layer[0, 0, 2, 2] = 4
    layer[0, 1] = -3
    pooled = network._pooled(layer)
    assert pooled.shape == (1, 2, 3, 3)
    assert pooled[0, 0, 1, 1] == pytest.approx(2)  # root of 16 / 4
    assert pooled[0, 1, 1, 1] == pytest.approx(3)


def test_stages_halve_the_frame(network):
    features = network._features(torch.rand(2, 3, 33, 20))
    assert [tuple(layer.shape) for layer in features] == [
        (2, 3, 33, 20),
        (2, 64, 33, 20),
        (2, 128, 17, 10),
        (2, 256, 9, 5),
        (2, 512, 5, 3),
        (2, 512, 3, 2),
    ]


def test_weights_come_from_a_file(weights, network, series, tmp_path):
    path = tmp_path / "dists.safetensors"
    stored = {name: tensor.clone() for name, tensor in weights.items()}
    stored["alpha"] = stored["alpha"].reshape(1, 1475, 1, 1)
    safetensors.save_file(stored, path)
    other = series[::-1].copy()
    assert load_dists(path)(other, series) == network(other, series)


def test_weights_that_are_not_there(weights, tmp_path):
    with pytest.raises(ModelError, match=r"no DISTS weights at .*absent.*ships none"):
        load_dists(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors in here")
    with pytest.raises(ModelError, match="as safetensors"):
        load_dists(broken)
    safetensors.save_file({"alpha": torch.ones(1475)}, broken)
    with pytest.raises(ModelError, match=r"broken.*lack 'features.0.weight'"):
        load_dists(broken)
    with pytest.raises(ModelError, match=r"'beta' must have the shape \(1475,\), got \(3,\)"):
        Dists({**weights, "beta": torch.ones(3)})
    with pytest.raises(ModelError, match="positive sum"):
        Dists({**weights, "alpha": torch.zeros(1475), "beta": torch.zeros(1475)})


def test_what_cannot_be_compared(network, series):
    with pytest.raises(DataError, match="must both be"):
        network(series[:1], series)
    with pytest.raises(DataError, match="16 x 16"):
        network(series[:, :15], series[:, :15])
    with pytest.raises(DataError, match="zero everywhere"):
        network(series, np.zeros_like(series))
