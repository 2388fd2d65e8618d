"""Reference data next to the repository, read without any code of the stream side."""

from dataclasses import dataclass
from functools import lru_cache

import h5py
import numpy as np
import pytest

from tests.helpers.paths import SHARED, existing

NOISE_MEASUREMENT = 1 << 18
SEMI_REAL = {
    "mini": "cine_mini_scd101_4ch_10f_R2",
    "scd201": "cine_scd201_8ch_R4_embeddedACS",
    "scd301": "cine_scd301_2sl_8ch_tgrappaR4",
}


def centred_fft(array, axis):
    shifted = np.fft.ifftshift(array, axis)
    return np.fft.fftshift(np.fft.fft(shifted, axis=axis, norm="ortho"), axis)


def centred_ifft(array, axis):
    shifted = np.fft.ifftshift(array, axis)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=axis, norm="ortho"), axis)


@dataclass(frozen=True)
class SemiRealSlice:
    kspace: np.ndarray
    mask: np.ndarray
    colouring: np.ndarray
    coil_maps: np.ndarray
    reference: np.ndarray


@lru_cache
def load_semi_real(name):
    """Whitened slices of one semi-real case; real images, real coil maps, simulated acquisition."""
    folder = SHARED / "data" / "semi_real_cine"
    existing(folder)
    with h5py.File(folder / f"{SEMI_REAL[name]}.h5") as file:
        acquisitions = file["dataset/data"][:]
    truth = dict(np.load(folder / f"{SEMI_REAL[name]}_ref.npz"))
    n_slices, n_coils, n_y, n_x = truth["coil_maps"].shape
    readouts = [data.view(np.complex64).reshape(n_coils, -1) for data in acquisitions["data"]]
    is_noise = (acquisitions["head"]["flags"] & NOISE_MEASUREMENT) != 0
    noise = np.concatenate([readout for readout, yes in zip(readouts, is_noise, strict=True) if yes], axis=1)
    colouring = np.linalg.cholesky(noise @ noise.conj().T / (noise.shape[1] - 1) / 2)  # unit variance per part
    whitening = np.linalg.inv(colouring)
    n_frames = truth["mask"].shape[0]
    kspace = np.zeros((n_slices, n_frames, n_coils, n_y, n_x), np.complex64)
    mask = np.zeros((n_slices, n_frames, n_y), bool)
    for readout, index, skip in zip(readouts, acquisitions["head"]["idx"], is_noise, strict=True):
        if not skip:
            line = centred_ifft(whitening @ readout, 1)
            first = line.shape[1] // 2 - n_x // 2
            where = index["slice"], index["phase"], slice(None), index["kspace_encode_step_1"]
            kspace[where] = centred_fft(line[:, first : first + n_x], 1)
            mask[index["slice"], index["phase"], index["kspace_encode_step_1"]] = True
    return [
        SemiRealSlice(kspace[i], mask[i], colouring.astype(np.complex64), truth["coil_maps"][i], truth["reference"][i])
        for i in range(n_slices)
    ]


@pytest.fixture(scope="session")
def semi_real():
    return load_semi_real


@lru_cache
def load_golden(name):
    path = SHARED / "parity" / "classical" / f"{name}.npz"
    existing(path)
    return dict(np.load(path))


@pytest.fixture(scope="session")
def golden():
    return load_golden


@pytest.fixture(scope="session")
def phantom_kspace(golden):
    """Fully sampled (frame, coil, ky, kx) of the golden phantom, made by its recipe."""
    case = golden("case_phantom")
    kspace = centred_fft(centred_fft(case["truth"][:, None] * case["coil_maps"], -1), -2)
    generator = np.random.default_rng(int(case["noise_seed"]))
    real, imaginary = generator.standard_normal(kspace.shape), generator.standard_normal(kspace.shape)
    return (kspace + float(case["sigma"]) * (real + 1j * imaginary)).astype(np.complex64)


@pytest.fixture
def smooth_maps():
    """A function that makes unit-norm maps (coil, y, x) without singularities."""

    def make(n_coils, n_y, n_x):
        y, x = np.mgrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
        angle = 2 * np.pi * np.arange(n_coils)[:, None, None] / n_coils
        distance = (y - 1.5 * np.sin(angle)) ** 2 + (x - 1.5 * np.cos(angle)) ** 2
        maps = np.exp(-distance / 2 + 0.4j * (x * np.sin(angle) + y * np.cos(angle)))
        return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)

    return make


@pytest.fixture
def disc():
    """A function that makes a textured complex object (y, x) with a dark surround."""

    def make(n_y, n_x):
        y, x = np.mgrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
        inside = (y / 0.8) ** 2 + (x / 0.7) ** 2 < 1
        return (inside * (1 + 0.3 * np.sin(9 * x) * np.cos(7 * y)) * np.exp(0.5j * (x - y))).astype(np.complex64)

    return make
