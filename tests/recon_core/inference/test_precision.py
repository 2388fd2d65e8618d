import contextlib

import pytest
import torch

from recon_core.inference import precision as precision_module
from tests.helpers.slices import noise_slice, reconstruct


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 0.0), ("bfloat16", 0.1)])
def test_precision(weights, precision, limit):
    """On the CPU tf32 is float32. Lower precision changes the image a little, and nothing after it."""
    weights("crunet_mr")
    exact = reconstruct(noise_slice(), method="crunet_mr")
    image = reconstruct(noise_slice(), method="crunet_mr", precision=precision)
    error = ((image - exact).norm() / exact.norm()).item()
    assert 0 <= error <= limit
    assert (error > 0) == (limit > 0)
    assert image.dtype == torch.complex64
    assert not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(reconstruct(noise_slice(), method="crunet_mr"), exact)


@pytest.mark.parametrize("query", [None, "_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_auto_is_the_precision_that_the_processor_has(weights, monkeypatch, query):
    """Also with a torch that cannot tell: that is float32."""
    for name in precision_module._BFLOAT16_QUERIES:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    if query:
        monkeypatch.setattr(torch.cpu, query, lambda: True, raising=False)
    weights("crunet_mr")
    image = reconstruct(noise_slice(), method="crunet_mr", precision="auto")
    expected = reconstruct(noise_slice(), method="crunet_mr", precision="bfloat16" if query else "float32")
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_auto_is_the_precision_that_the_gpu_has(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    seen = []
    monkeypatch.setattr(torch, "autocast", lambda *_, dtype, enabled: seen.append(dtype) or contextlib.nullcontext())
    with precision_module.precision_of_convolutions("auto", torch.device("cuda")):
        assert seen == [dtype]
