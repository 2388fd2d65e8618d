"""The golden vectors, made with the authors' code."""

import json

import numpy as np
import pytest

from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, existing

FOLDER = SHARED / "parity" / "dstdm"
# Adam makes much of the rounding of tiny gradients.
ABSOLUTE = {"train_param_slice": 3e-4, "train_ema_slice": 3e-4}


@pytest.mark.parametrize(
    ("case", "channels", "tolerance"),
    [
        ("net_official", 128, 1e-5),
        ("net_nf32", 32, 1e-5),
        ("data_dc", 32, 1e-5),
        ("sde_loss", 32, 1e-4),
        ("sampler_linear", 32, 1e-5),
        ("sampler_net", 32, 1e-4),
    ],
)
def test_golden(case, channels, tolerance):
    arrays = dict(np.load(existing(FOLDER / f"case_{case}.npz")))
    results = run_case("dstdm", arrays, {"nf": channels})
    compared = arrays.keys() & results.keys()
    assert len(compared) >= {"net_official": 1, "net_nf32": 5, "sampler_net": 2}.get(case, 10)
    for name in compared:
        expected, found = arrays[name], results[name]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        limit = ABSOLUTE.get(name, tolerance * np.abs(expected).max())
        assert np.abs(found - expected).max() <= limit, name


def test_the_published_configuration_finds_the_width_of_every_case():
    existing(FOLDER)
    config = json.loads((FOLDER / "keys.json").read_text())["config"]
    arrays = dict(np.load(FOLDER / "case_net_nf32.npz"))
    np.testing.assert_allclose(run_case("dstdm", arrays, config)["out"], arrays["out"], rtol=0, atol=1e-4)
