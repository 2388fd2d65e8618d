import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.zero_filled import ZeroFilled
from recon_core.data import CineSlice
from recon_core.engine import Engine, create_method
from recon_core.errors import DataError, ModelError
from recon_core.fourier import fft
from recon_core.metrics import best_scale, nrmse
from recon_core.options import ReconOptions


@pytest.fixture
def engine():
    return Engine("cpu")


@pytest.fixture
def make_slice(smooth_maps, disc):
    """A function that simulates an interleaved scan of a still disc; gives the slice and the image."""

    def make(n_frames=4, n_coils=5, n_y=24, n_x=18, step=2, **more):
        image, maps = torch.tensor(disc(n_y, n_x)), torch.tensor(smooth_maps(n_coils, n_y, n_x))
        mask = np.zeros((n_frames, n_y), bool)
        for frame in range(n_frames):
            mask[frame, frame % step :: step] = True
        kspace = fft(maps * image, (1, 2)).numpy() * mask[:, None, :, None]
        return CineSlice(kspace, mask, **more), np.broadcast_to(image.numpy(), (n_frames, n_y, n_x))

    return make


@pytest.mark.parametrize("case", ["mini", "scd201", "scd301"])
def test_accuracy_with_estimated_maps(engine, semi_real, case):
    """One set of defaults for all; the reference is weighted as the root sum of squares of the receive coils."""
    limit = {"mini": 0.05, "scd201": 0.16, "scd301": 0.165}[case]
    for data in semi_real(case):
        result = engine.reconstruct(CineSlice(data.kspace, data.mask, colouring=data.colouring), ReconOptions())
        assert nrmse(result.image * best_scale(result.image, data.reference), data.reference) < limit


def test_receive_intensity_is_what_the_reference_has(engine, semi_real):
    """Without the inverse of the whitening the shading differs, and with it the error."""
    (data,) = semi_real("mini")
    errors = []
    for colouring in (None, data.colouring, 100 * data.colouring):
        image = engine.reconstruct(CineSlice(data.kspace, data.mask, colouring=colouring), ReconOptions()).image
        errors.append(nrmse(image * best_scale(image, data.reference), data.reference))
    assert errors[0] > 1.5 * errors[1]
    assert errors[2] == pytest.approx(errors[1], abs=1e-4)


def test_colouring_of_unwhitened_data_changes_nothing(engine, make_slice):
    plain, _ = make_slice()
    coloured, _ = make_slice(colouring=3 * np.eye(5, dtype=np.complex64))
    options = ReconOptions(signal_prior=False)
    images = [engine.reconstruct(data, options).image for data in (plain, coloured)]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense"])
@pytest.mark.parametrize(("n_frames", "n_coils", "n_y", "n_x"), [(4, 5, 24, 18), (1, 1, 15, 9), (3, 30, 17, 16)])
def test_reconstructs(engine, make_slice, method, n_frames, n_coils, n_y, n_x):
    cine_slice, image = make_slice(n_frames, n_coils, n_y, n_x, step=1)
    result = engine.reconstruct(cine_slice, ReconOptions(method=method))
    assert result.image.shape == (n_frames, n_y, n_x)
    assert result.image.dtype == result.maps.dtype == np.complex64
    assert result.maps.shape == (n_coils, n_y, n_x)
    assert result.method == method
    assert set(result.seconds) == {"maps", "reconstruct"}
    assert nrmse(result.image, image) < 0.02


def test_undersampled(engine, make_slice):
    cine_slice, image = make_slice(n_y=48, n_x=36)
    assert nrmse(engine.reconstruct(cine_slice, ReconOptions()).image, image) < 0.03


def test_a_separate_calibration_makes_the_maps(engine, make_slice):
    """Frames that all miss the same lines have no complete centre; the reference scan has."""
    full, image = make_slice(step=1)
    mask = np.zeros_like(full.mask)
    mask[:, 1::2] = True
    kspace = full.kspace * mask[:, None, :, None]
    alone = engine.reconstruct(CineSlice(kspace, mask), ReconOptions())
    helped = engine.reconstruct(CineSlice(kspace, mask, calibration=full.kspace[0]), ReconOptions())
    assert alone.notes
    assert not helped.notes
    assert nrmse(helped.image, image) < 0.1 < nrmse(alone.image, image)


def test_an_empty_slice_is_zero(engine):
    empty = CineSlice(np.zeros((2, 3, 12, 10), np.complex64), np.zeros((2, 12), bool))
    for method in ("zero_filled", "cg_sense"):
        assert not engine.reconstruct(empty, ReconOptions(method=method)).image.any()


def test_read_only_input_is_not_touched(engine, make_slice):
    cine_slice, _ = make_slice()
    before = cine_slice.kspace.copy()
    cine_slice.kspace.flags.writeable = False
    engine.reconstruct(cine_slice, ReconOptions())
    np.testing.assert_array_equal(cine_slice.kspace, before)


def test_create_method():
    assert isinstance(create_method("zero_filled", ReconOptions()), ZeroFilled)
    assert isinstance(create_method("cg_sense", ReconOptions()), CGSense)


def test_unknown_method_names_the_known_ones(engine, make_slice):
    with pytest.raises(ModelError, match=r"'magic'.*cg_sense, grappa, low_rank_sparse, zero_filled"):
        engine.reconstruct(make_slice()[0], ReconOptions(method="magic"))


def test_methods_are_built_once(engine, make_slice, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class StreamOptions(ReconOptions):
        series: int = 0

    built = []
    monkeypatch.setattr(CGSense, "__init__", lambda self, options: built.append(options))
    monkeypatch.setattr(CGSense, "__call__", lambda self, data: data.hybrid[:, 0])
    cine_slice, _ = make_slice()
    for options in (StreamOptions(), StreamOptions(series=1), StreamOptions(), StreamOptions(iterations=3)):
        engine.reconstruct(cine_slice, options)
    assert [options.iterations for options in built] == [ReconOptions().iterations, 3]


def test_a_failure_says_what_happened(engine, make_slice, monkeypatch):
    def fail(self, data):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(CGSense, "__call__", fail)
    with pytest.raises(ModelError, match=r"cg_sense failed on a slice of 4 x 5 x 24 x 18 .*RuntimeError: out of luck"):
        engine.reconstruct(make_slice()[0], ReconOptions())


def test_errors_of_our_own_pass_unchanged(engine, make_slice, monkeypatch):
    def fail(self, data):
        raise DataError("as it is")

    monkeypatch.setattr(CGSense, "__call__", fail)
    with pytest.raises(DataError, match=r"^as it is$"):
        engine.reconstruct(make_slice()[0], ReconOptions())


def test_values_that_are_not_finite_are_an_error(engine, make_slice):
    cine_slice, _ = make_slice()
    cine_slice.kspace[1, 0, 1, 3] = np.nan
    with pytest.raises(ModelError):
        engine.reconstruct(cine_slice, ReconOptions())


def test_a_frame_that_is_not_finite_is_named(engine, make_slice, monkeypatch):
    def spoil(self, data):
        image = data.hybrid[:, 0].clone()
        image[2, 0, 0] = torch.inf
        return image

    monkeypatch.setattr(CGSense, "__call__", spoil)
    with pytest.raises(ModelError, match=r"not finite in frames \[2\]; the k-space is finite"):
        engine.reconstruct(make_slice()[0], ReconOptions())


def test_a_missing_gpu_is_an_error(engine, make_slice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Engine("auto").device.type == "cpu"
    with pytest.raises(ModelError, match="device to auto or cpu"):
        Engine("cuda")
    with pytest.raises(ModelError, match="device to auto or cpu"):
        engine.reconstruct(make_slice()[0], ReconOptions(device="cuda"))


def test_one_reconstruction_at_a_time(engine, make_slice, monkeypatch):
    inside = []

    def watch(self, data):
        inside.append(engine._lock.locked())
        return data.hybrid[:, 0]

    monkeypatch.setattr(CGSense, "__call__", watch)
    cine_slice, _ = make_slice()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: engine.reconstruct(cine_slice, ReconOptions()), range(4)))
    assert len(results) == 4
    assert inside == [True] * 4
    assert not engine._lock.locked()


@pytest.mark.parametrize("shape", [(3, 4, 24, 18), (1, 1, 5, 3)])
def test_warm(engine, monkeypatch, shape):
    shapes = []
    monkeypatch.setattr(CGSense, "__call__", lambda self, data: shapes.append(data.hybrid.shape) or data.hybrid[:, 0])
    engine.warm(ReconOptions(), shape)
    assert shapes == [shape]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_gpu_agrees_with_cpu(make_slice):
    cine_slice, _ = make_slice(colouring=np.eye(5, dtype=np.complex64))
    images = [Engine(device).reconstruct(cine_slice, ReconOptions()).image for device in ("cpu", "cuda")]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["recon_core.options", "recon_core.methods", "recon_core.data", "recon_core.metrics"])
def test_light_modules_leave_torch_alone(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
