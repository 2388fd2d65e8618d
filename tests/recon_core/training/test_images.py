import pytest
import torch

from recon_core.inference.fusion import settled
from recon_core.inference.start import with_start
from recon_core.simulate.sampling import interleaved_mask
from recon_core.training.images import reconstruct_series, settle_series
from recon_core.training.library import Library
from recon_core.training.measurements import measure
from recon_core.training.series import draw_series
from recon_core.weights.config import build_network
from tests.helpers.networks import TINY


def drawn(n_frames):
    series = draw_series((5,), Library(), frames=n_frames, matrix=(24, 24))
    return measure((5,), series, mask=interleaved_mask(n_frames, 24, 3), n_coils=4)


@pytest.mark.parametrize("n_frames", [3, 4, 7])
def test_a_series_is_reconstructed_in_windows(n_frames):
    network = build_network("unrolled_resnet3d", TINY["unrolled_resnet3d"]).eval()
    scan = drawn(n_frames)
    for start in ("zero_filled", "cg_sense"):
        with torch.inference_mode():
            image = reconstruct_series(network, scan.started(start))
        assert image.shape == (n_frames, 24, 24)
        assert image.isfinite().all()
        if n_frames == 4:
            with torch.inference_mode():
                assert torch.equal(image, network.reconstruct(with_start(scan.slice(), start)))


def test_an_image_is_settled_where_the_error_of_the_start_is_known():
    scan = drawn(7)
    image = 1.1 * scan.target
    assert settle_series(scan.started("cg_sense"), image) is image
    scan = scan.started("kt_sense")
    expected = settled(scan.slice(), image)
    assert torch.equal(settle_series(scan, image), expected)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        assert torch.equal(settle_series(scan, image), expected)


def test_magnitudes_are_settled_with_the_phase_of_the_start():
    scan = drawn(7).started("kt_sense")
    magnitudes = scan.target.abs()
    turned = torch.polar(magnitudes, scan.start.angle())
    assert torch.equal(settle_series(scan, magnitudes.to(torch.complex64)), settle_series(scan, turned))
