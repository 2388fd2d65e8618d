import numpy as np
import pytest
import torch

from recon_core.physics.fourier import fft, ifft


def complex_noise(*shape):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 15, 16])
def test_against_the_sum_that_defines_it(n):
    index = np.arange(n) - n // 2
    matrix = np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)
    signal = complex_noise(3, n)
    np.testing.assert_allclose(fft(signal, (1,)), signal.numpy() @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(ifft(signal, (1,)), signal.numpy() @ matrix.conj(), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 9), (1, 5, 6)])
@pytest.mark.parametrize("dims", [(-1,), (1,), (1, 2), (0, 1, 2)])
def test_inverse_and_unitary(shape, dims):
    signal = complex_noise(*shape)
    torch.testing.assert_close(ifft(fft(signal, dims), dims), signal)
    torch.testing.assert_close(fft(signal, dims).norm(), signal.norm())


@pytest.mark.parametrize("n", [6, 7])
def test_a_constant_lies_in_the_centre(n):
    spectrum = fft(torch.ones(n, dtype=torch.complex64), (0,))
    expected = torch.zeros(n, dtype=torch.complex64)
    expected[n // 2] = n**0.5
    torch.testing.assert_close(spectrum, expected)
