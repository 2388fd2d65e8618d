import numpy as np
import pytest
import torch

from recon_core.coils.calibration import calibration_lines, coil_images, time_average
from recon_core.physics.fourier import ifft


def test_time_average_counts_every_line():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 8, 3, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, :4] = mask[1, 2:6] = mask[2, 3] = True
    kspace = truth.expand(3, -1, -1, -1) * mask[:, None, :, None]
    average, measured = time_average(kspace, mask)
    torch.testing.assert_close(average[:, :6], truth[:, :6])
    assert not average[:, 6:].any()
    assert measured.tolist() == [True] * 6 + [False] * 2


@pytest.mark.parametrize(
    ("n_lines", "measured", "expected"),
    [
        (8, range(8), (0, 8)),
        (9, range(9), (0, 9)),
        (16, [0, 4, 6, 7, 8, 9, 10, 12], (6, 11)),
        (16, [0, 4, 7, 8, 9, 10, 12], (7, 10)),  # as many lines on both sides
        (16, range(6, 16), (6, 11)),  # partial Fourier
        (15, [7], (7, 8)),
        (16, [0, 2, 4, 6, 8, 10], (8, 9)),
    ],
)
def test_calibration_lines(n_lines, measured, expected):
    flags = torch.zeros(n_lines, dtype=torch.bool)
    flags[list(measured)] = True
    lines = calibration_lines(flags)
    assert (lines.start, lines.stop) == expected


@pytest.mark.parametrize("measured", [[], [0, 1, 2], [6, 7, 9, 10]])
def test_no_centre_no_lines(measured):
    flags = torch.zeros(16, dtype=torch.bool)
    flags[measured] = True
    lines = calibration_lines(flags)
    assert lines.start == lines.stop


def test_complete_block_is_not_apodised():
    hybrid = torch.randn(2, 9, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(coil_images(hybrid, slice(0, 9)), ifft(hybrid, (1,)))


def test_short_block_does_not_ring():
    """The image of a point falls off; without a window its side lobes would be at 21 % of the peak."""
    hybrid = torch.ones(1, 65, 1, dtype=torch.complex64)
    image = coil_images(hybrid, slice(32 - 8, 32 + 9))[0, :, 0].numpy()
    size = np.abs(image)
    assert size.argmax() == 32
    assert size[np.abs(np.arange(65) - 32) > 8].max() < 0.03 * size.max()
    np.testing.assert_allclose(image.imag, 0, atol=1e-6)  # the window is centred: no phase along y
