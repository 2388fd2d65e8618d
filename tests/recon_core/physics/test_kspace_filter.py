import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.physics.fourier import fft, ifft
from recon_core.physics.kspace_filter import filter_image, tukey_window


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


@settings(max_examples=50)
@given(size=st.integers(2, 50), taper=st.floats(0, 1), reach=st.floats(1, 30))
def test_the_window_is_one_at_the_centre_symmetric_and_falls(size, taper, reach):
    window = tukey_window(size, reach, taper)
    centre = size // 2
    assert window[centre] == 1
    above = window[centre:]
    assert (above.diff() <= 0).all()
    torch.testing.assert_close(window[: centre + 1].flip(0)[: len(above)], above[: centre + 1])
    beyond = (torch.arange(size) - centre).abs() >= reach
    assert float(window[beyond].abs().max() if beyond.any() else 0) < 1e-6


def test_the_whole_taper_is_a_hann_window():
    window = tukey_window(64, 32.5, 1.0).numpy()
    k = np.arange(64) - 32
    np.testing.assert_allclose(window, np.cos(np.pi / 2 * k / 32.5) ** 2, atol=1e-6)


@pytest.mark.parametrize("taper", [0.2, 1.0])
def test_a_uniform_image_stays_as_it_is_and_noise_gets_less(taper):
    uniform = torch.full((2, 21, 16), 3 - 2j, dtype=torch.complex64)
    torch.testing.assert_close(filter_image(uniform, taper, (0, 20), (0, 15)), uniform)
    image = noise(2, 21, 16)
    assert filter_image(image, taper, (0, 20), (0, 15)).norm() < image.norm()


def test_an_image_is_filtered_along_both_axes():
    image = noise(2, 20, 24)
    wanted = fft(image, (-2, -1)) * tukey_window(20, 10.5, 0.5)[:, None] * tukey_window(24, 7.5, 0.5)
    # columns 5 to 19 lie up to seven from the centre
    torch.testing.assert_close(filter_image(image, 0.5, (0, 19), (5, 19)), ifft(wanted, (-2, -1)))
