import numpy as np
import pytest
import torch

from recon_core import sense
from recon_core.errors import DataError
from recon_core.fourier import fft, ifft
from recon_core.sense import SenseOperator

CASES = [
    # frames, coils, y, x, maps per frame
    (1, 1, 8, 6, False),
    (3, 4, 9, 5, False),
    (2, 3, 10, 7, True),
    (5, 30, 7, 4, False),
    (4, 2, 1, 3, True),
    (2, 2, 14, 1, False),
]


def build(n_frames, n_coils, n_y, n_x, per_frame):
    generator = torch.Generator().manual_seed(n_frames * n_y)
    shape = (n_frames, n_coils, n_y, n_x) if per_frame else (n_coils, n_y, n_x)
    maps = torch.randn(shape, dtype=torch.complex64, generator=generator)
    mask = torch.rand(n_frames, n_y, generator=generator) < 0.5
    image = torch.randn(n_frames, n_y, n_x, dtype=torch.complex64, generator=generator)
    hybrid = torch.randn(n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    return maps, mask, image, hybrid


def plain_forward(maps, mask, image):
    """The definition, with all shifts."""
    coil_images = (maps if maps.ndim == 4 else maps[None]) * image[:, None]
    shifted = np.fft.ifftshift(coil_images.numpy(), -2)
    kspace = np.fft.fftshift(np.fft.fft(shifted, axis=-2, norm="ortho"), -2)
    return kspace * mask.numpy()[:, None, :, None]


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_plain_definition(case):
    maps, mask, image, _ = build(*case)
    result = SenseOperator(maps, mask).forward(image)
    assert result.shape == (case[0], case[1], case[2], case[3])
    np.testing.assert_allclose(result, plain_forward(maps, mask, image), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_adjoint_and_normal(case):
    maps, mask, image, hybrid = build(*case)
    operator = SenseOperator(maps, mask)
    forward, back = operator.forward(image), operator.adjoint(hybrid)
    torch.testing.assert_close(
        torch.vdot(hybrid.flatten(), forward.flatten()),
        torch.vdot(back.flatten(), image.flatten()),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(operator.normal(image), operator.adjoint(forward), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES[:3])
def test_linear(case):
    maps, mask, image, _ = build(*case)
    operator = SenseOperator(maps, mask)
    other = image.flip(0) * 1j
    combined = operator.forward((2 - 1j) * image + other)
    expected = (2 - 1j) * operator.forward(image) + operator.forward(other)
    torch.testing.assert_close(combined, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_frame", [False, True])
def test_portions_of_frames_change_nothing(monkeypatch, per_frame):
    maps, mask, image, hybrid = build(5, 3, 8, 6, per_frame)
    whole = SenseOperator(maps, mask)
    monkeypatch.setitem(sense._CHUNK_BYTES, "cpu", 2 * maps.shape[-3] * 8 * 6 * 8)
    parts = SenseOperator(maps, mask)
    assert parts._chunk == 2
    torch.testing.assert_close(parts.normal(image), whole.normal(image))
    torch.testing.assert_close(parts.forward(image), whole.forward(image))
    torch.testing.assert_close(parts.adjoint(hybrid), whole.adjoint(hybrid))


def test_the_readout_transform_cancels():
    """Encoding in (ky, kx), taken back along kx, is the hybrid encoding."""
    maps, mask, image, _ = build(2, 3, 8, 7, False)
    kspace = fft(maps * image[:, None], (-2, -1)) * mask[:, None, :, None]
    torch.testing.assert_close(ifft(kspace, (-1,)), SenseOperator(maps, mask).forward(image), rtol=1e-4, atol=1e-5)


def test_norm_at_most_one_with_unit_maps():
    maps, mask, image, _ = build(3, 4, 12, 5, False)
    maps = maps / maps.abs().square().sum(0).sqrt()
    assert SenseOperator(maps, mask).forward(image).norm() <= image.norm()


@pytest.mark.parametrize("maps_shape", [(2, 9, 4), (3, 2, 8, 4), (8, 4)])
def test_axes_that_disagree_are_refused(maps_shape):
    with pytest.raises(DataError, match="maps must be"):
        SenseOperator(torch.ones(maps_shape, dtype=torch.complex64), torch.ones(2, 8, dtype=torch.bool))
