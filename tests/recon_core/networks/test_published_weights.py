"""The authors' own weights for CRNN-MRI: imported, run where they work, and kept from where they do harm."""

import numpy as np
import pytest
import torch

from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import ModelError
from recon_core.options import ReconOptions
from recon_core.physics.fourier import fft
from recon_core.simulate.sampling import uniform_mask
from recon_core.weights.loading import import_weights
from tests.helpers.paths import SHARED, needs

FOLDER = SHARED / "parity" / "crnn_mri"

pytestmark = needs(FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    import_weights("crnn_mri", FOLDER / "crnn_mri_d5_c5.pth", folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CINESTREAM_WEIGHTS", str(folder))
        yield


@pytest.fixture(scope="module")
def demo():
    """A series (frame, y, x) and the lines (frame, ky) of the authors' own generator, in our order."""
    with np.load(FOLDER / "case_psnr_demo.npz") as case:
        truth = (case["gt"][:, 0].astype(np.float32) + 1j * case["gt"][:, 1]).astype(np.complex64)
        return truth, np.fft.fftshift(case["lines"], axes=1).astype(bool), float(case["psnr_crnn"])


def measured(truth, mask, n_coils=1):
    kspace = fft(torch.from_numpy(np.repeat(truth[:, None] / n_coils**0.5, n_coils, 1)), (2, 3)).numpy()
    return CineSlice(kspace * mask[:, None, :, None], mask)


def psnr(image, truth):
    return 10 * np.log10(np.abs(truth).max() ** 2 / np.mean(np.abs(image - truth) ** 2))


def in_phase(image, truth):
    """Coil maps from the data fix the phase up to a smooth one that they take over; the truth has its own."""
    return np.abs(image) * np.exp(1j * np.angle(truth))


@pytest.mark.slow  # golden vectors hold the network itself to its authors'
def test_they_reconstruct_what_the_authors_network_does(demo):
    truth, mask, official = demo
    result = Engine("cpu").reconstruct(measured(truth, mask), ReconOptions.of(method="crnn_mri", fallback="none"))
    assert psnr(in_phase(result.image, truth), truth) > official
    assert result.method == "crnn_mri"
    (note,) = [note for note in result.notes if "weights" in note]
    assert note.startswith("weights crnn_mri (sha256 ")


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-6, 1e4])
def test_the_unit_of_the_data_does_not_matter(demo, unit):
    truth, mask, official = demo
    options = ReconOptions.of(method="crnn_mri", fallback="none")
    result = Engine("cpu").reconstruct(measured(np.float32(unit) * truth, mask), options)
    assert psnr(in_phase(result.image / unit, truth), truth) > official


def test_where_they_do_harm_the_fallback_takes_over_and_says_why(demo):
    truth, _, _ = demo
    constant = uniform_mask(len(truth), truth.shape[1], 4, 24)
    options = ReconOptions.of(method="crnn_mri", fallback="cg_sense")
    result = Engine("cpu").reconstruct(measured(truth, constant), options)
    assert result.method == "cg_sense"
    (why,) = [note for note in result.notes if "crnn_mri" in note]
    assert "cg_sense instead of crnn_mri" in why
    assert "constant pattern, trained for random or interleaved" in why
    assert "acceleration 3.12, trained for 3.5 to 11" in why


def test_without_a_fallback_it_is_an_error(demo):
    truth, mask, _ = demo
    with pytest.raises(ModelError, match="coils 2, trained for 1"):
        Engine("cpu").reconstruct(measured(truth, mask, 2), ReconOptions.of(method="crnn_mri", fallback="none"))
