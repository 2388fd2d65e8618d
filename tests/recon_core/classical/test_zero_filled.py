import numpy as np
import torch

from recon_core.classical.zero_filled import ZeroFilled
from recon_core.physics.fourier import ifft
from tests.recon_core.support import run


def test_golden(golden, phantom_kspace):
    case = golden("case_cgsense_bart")
    maps = torch.tensor(golden("case_maps_bart")["ecalib_tavg"])
    mask = golden("case_phantom")["mask_shift"].astype(bool)
    expected = case["zf_shift"]
    frames = case["frames"][: len(expected)]
    data = phantom_kspace[frames] * mask[frames][:, None, :, None]
    image = run(ZeroFilled(), ifft(torch.tensor(data), (-1,)), maps, torch.tensor(mask[frames]))
    assert np.linalg.norm(image.numpy() - expected) < 1e-4 * np.linalg.norm(expected)


def test_complete_data_give_the_image(smooth_maps, disc):
    maps, image = torch.tensor(smooth_maps(4, 12, 9)), torch.tensor(disc(12, 9))
    lines = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(maps * image, -2), dim=-2, norm="ortho"), -2)
    result = run(ZeroFilled(), lines[None], maps, torch.ones(1, 12, dtype=torch.bool))
    torch.testing.assert_close(result[0], image)


def test_what_the_mask_excludes_is_ignored(smooth_maps):
    maps = torch.tensor(smooth_maps(2, 8, 5))
    result = run(ZeroFilled(), torch.ones(1, 2, 8, 5) + 0j, maps, torch.zeros(1, 8, dtype=torch.bool))
    assert not result.any()
