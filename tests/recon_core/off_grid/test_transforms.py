"""The libraries of the transforms; on a GPU, which the CPU plays, with a stand-in for cufinufft."""

import sys
from types import SimpleNamespace

import pytest
import torch

from recon_core.errors import ResourceError
from recon_core.off_grid.transforms import _cufinufft, choose_transforms, grid_samples, sample_image
from tests.helpers.emulated_gpu import EmulatedGPU, EmulatedTensor

finufft = pytest.importorskip("finufft", reason="no wheel of finufft for this platform")
MATRIX = 8, 6


@pytest.fixture(autouse=True)
def _looked_for_anew():
    _cufinufft.cache_clear()
    yield
    _cufinufft.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """The calls of a stand-in for cufinufft, which takes what that of 2.5.1 takes and nothing else."""
    made = []

    def transform(name, data_axes):
        def run(y, x, data, *modes, eps, isign, gpu_device_id, gpu_stream):
            for points in (y, x):
                assert isinstance(points, EmulatedTensor)
                assert points.is_contiguous()
                assert points.dtype == torch.float32
                assert points.ndim == 1
            assert isinstance(data, EmulatedTensor)
            assert data.is_contiguous()
            assert not data.is_conj()
            assert data.dtype == torch.complex64
            assert data.ndim == data_axes
            assert not data.requires_grad
            assert gpu_stream == 0
            made.append((name, tuple(data.shape), modes, eps, isign, gpu_device_id))
            arrays = [one.held.numpy() for one in (y, x, data)]
            return EmulatedTensor(torch.from_numpy(getattr(finufft, name)(*arrays, *modes, eps=eps, isign=isign)))

        return run

    module = SimpleNamespace(nufft2d1=transform("nufft2d1", 2), nufft2d2=transform("nufft2d2", 3))
    monkeypatch.setitem(sys.modules, "cufinufft", module)
    return made


def build():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, *MATRIX, dtype=torch.complex64, generator=generator)
    return images, torch.rand(7, 2, generator=generator) - 0.5


def there_and_back(images, positions):
    """Samples of conjugate images with a gradient, their adjoint, and what that is on the CPU."""
    samples = sample_image(images.requires_grad_(True).conj(), positions)
    return samples, grid_samples(samples, positions, MATRIX, 1e-5, 1.5)


def test_a_gpu_is_left_to_cufinufft(calls):
    images, positions = build()
    expected = there_and_back(images.clone(), positions)
    with EmulatedGPU() as gpu:
        on_gpu = images.to("cuda"), positions.to("cuda")
        gpu.waits.clear()
        samples, back = there_and_back(*on_gpu)
        assert gpu.waits["download"] == 1  # that of the trial
        assert samples.device.type == back.device.type == "cuda"
        for found, right in zip((samples.cpu(), back.cpu()), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    trial, forth, back = calls
    assert trial[:2] == ("nufft2d2", (1, 2, 2))
    assert forth == ("nufft2d2", (3, *MATRIX), (), 1e-4, -1, 0)
    assert back == ("nufft2d1", (3, 7), (MATRIX,), 1e-5, 1, 0)


@pytest.mark.parametrize("broken", [False, True])
def test_without_cufinufft_a_gpu_takes_finufft(monkeypatch, broken):
    def fail(*_, **__):
        raise RuntimeError("Error creating plan.")

    monkeypatch.setitem(sys.modules, "cufinufft", SimpleNamespace(nufft2d2=fail) if broken else None)
    images, positions = build()
    expected = there_and_back(images.clone(), positions)
    with EmulatedGPU():
        found = there_and_back(images.to("cuda"), positions.to("cuda"))
        assert found[1].device.type == "cuda"
        for one, right in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), right)


def test_without_any_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "finufft", None)
    monkeypatch.setitem(sys.modules, "cufinufft", None)
    with pytest.raises(ResourceError, match=r"pip install 'cinestream\[radial\]'$"):
        choose_transforms(torch.device("cpu"))
    with (
        EmulatedGPU(),
        pytest.raises(ResourceError, match=r"\[radial\]'; on this GPU cufinufft .*'cinestream\[cuda\]'$"),
    ):
        choose_transforms(torch.device("cuda", 0))


def test_transforms_take_real_and_conjugate_views():
    images, positions = build()
    torch.testing.assert_close(sample_image(images.conj(), positions), sample_image(images.conj().clone(), positions))
    samples = sample_image(images, positions, 1e-6)
    back = grid_samples(samples, positions, MATRIX, 1e-6)
    assert torch.vdot(back.flatten(), images.flatten()).real == pytest.approx(float(samples.norm() ** 2), rel=1e-4)
