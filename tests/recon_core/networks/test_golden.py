"""Golden cases: weights by name, and outputs that follow from them."""

import numpy as np
import torch

from recon_core.networks.golden import fill, golden_output, normal
from recon_core.own_methods import load_method
from recon_core.physics.consistency import DataConsistency
from tests.helpers.networks import tiny


def test_numbers_depend_on_the_name_alone():
    np.testing.assert_array_equal(normal("a", (3, 4)), normal("a", (3, 4)))
    assert not np.array_equal(normal("a", (3, 4)), normal("b", (3, 4)))
    assert normal("a", (3, 4)).dtype == np.float32


def test_filling_covers_every_parameter():
    network = load_method("crnn_mri")()
    before = [parameter.clone() for parameter in network.parameters()]
    fill(network)
    assert not any(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_the_output_is_that_of_the_network():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]

    maps, mask = draw(2, 16, 12), np.arange(16) % 2 == np.arange(4)[:, None] % 2
    maps /= np.linalg.norm(maps, axis=0)
    arrays = {"maps": maps, "mask": mask, "measured": draw(4, 2, 16, 12) * mask[:, None, :, None]}
    network = tiny("crnn_mri")
    consistency = DataConsistency(*(torch.from_numpy(arrays[name]) for name in ("maps", "mask", "measured")))
    with torch.no_grad():
        expected = network(consistency.zero_filled, consistency).numpy()
    output = golden_output(network, {**arrays, "output": expected})
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    again = golden_output(network, {**arrays, "image": consistency.zero_filled.numpy()})
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)
