import dataclasses
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.grappa import Grappa
from recon_core.classical.kt_sense import KtSense
from recon_core.classical.zero_filled import ZeroFilled
from recon_core.coils.calibration import time_average
from recon_core.coils.joint import joint_maps
from recon_core.data import CineSlice, HybridSlice, Receiver
from recon_core.engine import Engine, create_method
from recon_core.errors import DataError, ModelError, ResourceError, SettingsError
from recon_core.inference import trained as trained_module
from recon_core.inference.precision import precision_of_convolutions
from recon_core.methods import METHODS
from recon_core.metrics.measures import best_scale, nrmse
from recon_core.networks.crunet_mr import CRUNetMR
from recon_core.options import CGSenseOptions, ReconOptions, apply, option
from recon_core.physics import threads as threads_module
from recon_core.physics.fourier import fft, ifft
from recon_core.trust.ranges import Limits, TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights.manifest import find_weights, write_entry
from tests.helpers.networks import write_tiny_chain, write_tiny_weights

pytestmark = pytest.mark.usefixtures("_coil_maps_once")

# Five coils that were whitened, and were white before.
WHITE = Receiver(np.eye(5, dtype=np.complex64))


@pytest.fixture
def engine():
    return Engine("cpu")


@pytest.fixture
def make_slice(smooth_maps, disc):
    """A function that simulates a scan of a disc, still unless it has a pulse; gives the slice and the image.

    The lines move from frame to frame; `acs_lines` central ones are in every frame. Noise of unit variance per part
    comes with the `snr` at the brightest pixel; without, the image is about one.
    """

    def make(n_frames=4, n_coils=5, n_y=24, n_x=18, step=2, *, moves=True, acs_lines=0, pulse=0.0, snr=None, **more):
        y, x = np.mgrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
        beat = pulse * np.cos(2 * np.pi * np.arange(n_frames) / n_frames)
        image = disc(n_y, n_x) * (1 + beat[:, None, None] * (y**2 + x**2 < 0.1)).astype(np.complex64)
        mask = np.zeros((n_frames, n_y), bool)
        for frame in range(n_frames):
            mask[frame, frame % step if moves else 0 :: step] = True
        first = n_y // 2 - acs_lines // 2
        mask[:, first : first + acs_lines] = True
        kspace = fft(torch.tensor(smooth_maps(n_coils, n_y, n_x) * image[:, None]), (2, 3)).numpy()
        if snr is not None:
            generator = np.random.default_rng(0)
            image, kspace = snr * image, snr * kspace
            kspace = kspace + generator.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0]
        return CineSlice(kspace * mask[:, None, :, None], mask, **more), image

    return make


def error(result, data):
    return nrmse(result.image * best_scale(result.image, data.reference), data.reference)


SEMI_REAL = [
    pytest.param(case, marks=[] if case == "mini" else [pytest.mark.slow]) for case in ("mini", "scd201", "scd301")
]


@pytest.mark.parametrize("case", SEMI_REAL)
@pytest.mark.parametrize("method", ["cg_sense", "grappa", "low_rank_sparse", "kt_sense"])
def test_accuracy_with_estimated_maps(engine, semi_real, method, case):
    """One set of defaults for all; the reference is weighted as the root sum of squares of the receive coils."""
    limit = {
        "cg_sense": {"mini": 0.045, "scd201": 0.07, "scd301": 0.092},
        "grappa": {"mini": 0.055, "scd201": 0.078, "scd301": 0.114},
        "low_rank_sparse": {"mini": 0.047, "scd201": 0.09, "scd301": 0.069},
        "kt_sense": {"mini": 0.038, "scd201": 0.047, "scd301": 0.037},
    }[method][case]
    for data in semi_real(case):
        cine_slice = CineSlice(data.kspace, data.mask, receiver=Receiver(data.colouring))
        result = engine.reconstruct(cine_slice, ReconOptions.of(method=method))
        assert result.method == method
        assert error(result, data) < limit


@pytest.mark.parametrize("case", SEMI_REAL)
def test_the_signal_prior_is_worth_its_while_on_real_anatomy(engine, semi_real, case):
    for data in semi_real(case):
        cine_slice = CineSlice(data.kspace, data.mask, receiver=Receiver(data.colouring))
        with_prior, without = (
            error(engine.reconstruct(cine_slice, ReconOptions.of(signal_prior=prior)), data) for prior in (True, False)
        )
        assert with_prior < 0.98 * without


def test_receive_intensity_is_what_the_reference_has(engine, semi_real):
    """Without the inverse of the whitening the shading differs, and with it the error."""
    (data,) = semi_real("mini")
    errors = []
    for colouring in (None, data.colouring, 100 * data.colouring):
        image = engine.reconstruct(
            CineSlice(data.kspace, data.mask, receiver=Receiver(colouring)), ReconOptions()
        ).image
        errors.append(nrmse(image * best_scale(image, data.reference), data.reference))
    assert errors[0] > 1.5 * errors[1]
    assert errors[2] == pytest.approx(errors[1], abs=1e-4)


def test_colouring_of_unwhitened_data_changes_nothing(engine, make_slice):
    plain, _ = make_slice()
    coloured, _ = make_slice(receiver=Receiver(3 * np.eye(5, dtype=np.complex64)))
    options = ReconOptions.of(signal_prior=False)
    images = [engine.reconstruct(data, options).image for data in (plain, coloured)]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense"])
@pytest.mark.parametrize(("n_frames", "n_coils", "n_y", "n_x"), [(4, 5, 24, 18), (1, 1, 15, 9), (3, 30, 17, 16)])
def test_reconstructs(engine, make_slice, method, n_frames, n_coils, n_y, n_x):
    cine_slice, image = make_slice(n_frames, n_coils, n_y, n_x, step=1)
    result = engine.reconstruct(cine_slice, ReconOptions.of(method=method))
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


def test_given_maps_are_taken(engine, make_slice, smooth_maps):
    cine_slice, _ = make_slice()
    maps = smooth_maps(5, 24, 18)
    result = engine.reconstruct(dataclasses.replace(cine_slice, maps=maps), ReconOptions())
    np.testing.assert_array_equal(result.maps, maps)
    data = HybridSlice(
        ifft(torch.tensor(cine_slice.kspace), (-1,)),
        torch.tensor(cine_slice.mask),
        torch.tensor(maps),
        *time_average(ifft(torch.tensor(cine_slice.kspace), (-1,)), torch.tensor(cine_slice.mask)),
    )
    np.testing.assert_allclose(result.image, CGSense(CGSenseOptions())(data).numpy(), atol=1e-5)


def test_maps_of_a_calibration_are_those_of_a_slice_with_it(engine, make_slice):
    cine_slice, _ = make_slice(step=1)
    calibration = cine_slice.kspace[0]
    expected = engine.reconstruct(dataclasses.replace(cine_slice, calibration=calibration), ReconOptions()).maps
    maps, notes = engine.coil_maps(calibration, ReconOptions())
    np.testing.assert_array_equal(maps, expected)
    assert notes == ()


@pytest.mark.parametrize(
    ("few", "context", "method", "expected"),
    [
        (1 << 20, 0, "cg_sense", 1),
        (1000, 0, "cg_sense", 3),
        (3000, 3, "cg_sense", 1),  # of the frames before only the average is taken
        (3000, 3, "kt_sense", 3),
    ],
)
def test_one_thread_works_on_few_samples(make_slice, monkeypatch, few, context, method, expected):
    """4 frames of 2,160 samples; whatever thread asks, and torch has as many threads as before afterwards."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(threads_module, "_FEW", few)
        engine = Engine("cpu")
        monkeypatch.setattr(
            engine, "_reconstruct", lambda *_: seen.append((torch.get_num_threads(), threading.current_thread().name))
        )
        cine_slice = dataclasses.replace(make_slice()[0], context=context)
        for _ in range(2):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(engine.reconstruct, cine_slice, ReconOptions.of(method=method)).result()
        engine.reconstruct(cine_slice, ReconOptions.of(method=method))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert [count for count, _ in seen] == [expected] * 3
    assert len({name for _, name in seen}) > 1


def test_a_slice_without_frames_is_an_error_of_its_method(engine):
    nothing = CineSlice(np.zeros((0, 4, 16, 16), np.complex64), np.zeros((0, 16), bool))
    with pytest.raises(ModelError, match="failed on a slice of 0 x 4 x 16 x 16"):
        engine.reconstruct(nothing, ReconOptions.of(method="cg_sense"))


def test_coil_maps_go_on_from_earlier_ones(engine, make_slice, monkeypatch):
    cine_slice, _ = make_slice(step=1)
    first, _ = engine.coil_maps(cine_slice.kspace[0], ReconOptions())
    given = []
    monkeypatch.setattr("recon_core.coils.estimate.joint_maps", lambda *a: (given.append(a[2]), joint_maps(*a))[1])
    engine.coil_maps(cine_slice.kspace[1], ReconOptions(), near=first)
    np.testing.assert_array_equal(given[0].numpy(), first)


def test_the_precision_of_who_gave_way_is_not_that_of_others(engine, make_slice, monkeypatch):
    def flags():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    seen = []
    original = CGSense.__call__
    monkeypatch.setattr(CGSense, "__call__", lambda self, data: (seen.append(flags()), original(self, data))[1])
    before = flags()
    with precision_of_convolutions("tf32", torch.device("cpu")):  # in the middle of its network
        engine.reconstruct(make_slice(step=1)[0], ReconOptions())
        assert flags() == (True, True)
    assert seen == [(False, False)]
    assert flags() == before


@pytest.mark.parametrize("maps", ["auto", "walsh", "espirit", "inati"])
def test_coil_maps_that_cannot_be_made_say_why(engine, make_slice, maps):
    calibration = make_slice(step=1)[0].kspace[0].copy()
    calibration[2, 12, 3] = np.nan
    with pytest.raises(ModelError, match=r"coil maps failed on a calibration of 5 x 24 x 18 .* is not finite itself"):
        engine.coil_maps(calibration, ReconOptions.of(maps=maps))


@pytest.mark.parametrize("method", ["cg_sense", "zero_filled", "grappa", "low_rank_sparse", "kt_sense"])
def test_the_context_only_helps(engine, make_slice, smooth_maps, method):
    cine_slice, _ = make_slice(n_frames=7, pulse=0.3, acs_lines=8, maps=smooth_maps(5, 24, 18))
    options = ReconOptions.of(method=method, g_factor=method == "cg_sense")
    whole = engine.reconstruct(cine_slice, options)
    part = engine.reconstruct(dataclasses.replace(cine_slice, context=4), options)
    np.testing.assert_allclose(part.image, whole.image[4:], atol=2e-5)


@pytest.mark.parametrize("method", ["zero_filled", "kt_sense"])  # from frame to frame, and all frames together
def test_what_is_completed_and_filtered_are_the_frames_after_the_context(engine, make_slice, smooth_maps, method):
    cine_slice, _ = make_slice(n_frames=7, n_y=48, pulse=0.3, maps=smooth_maps(5, 48, 18))
    mask = cine_slice.mask & (np.arange(48) < 34)
    cine_slice = dataclasses.replace(cine_slice, kspace=cine_slice.kspace * mask[:, None, :, None], mask=mask)
    options = ReconOptions.of(method=method, partial_fourier="pocs", kspace_filter=0.5)
    whole = engine.reconstruct(cine_slice, options)
    part = engine.reconstruct(dataclasses.replace(cine_slice, context=4), options)
    assert any("pocs completes" in note for note in part.notes)
    np.testing.assert_allclose(part.image, whole.image[4:], atol=2e-5)


def test_methods_that_go_from_frame_to_frame_are_spared_the_context(engine, make_slice, monkeypatch):
    seen = []
    original = CGSense.__call__
    monkeypatch.setattr(
        CGSense, "__call__", lambda self, data: (seen.append(len(data.hybrid)), original(self, data))[1]
    )
    cine_slice, _ = make_slice(n_frames=7)
    engine.reconstruct(dataclasses.replace(cine_slice, context=6), ReconOptions())
    assert seen == [1]


def test_an_empty_slice_is_zero(engine):
    empty = CineSlice(np.zeros((2, 3, 12, 10), np.complex64), np.zeros((2, 12), bool))
    for method in ("zero_filled", "cg_sense"):
        assert not engine.reconstruct(empty, ReconOptions.of(method=method)).image.any()


def test_read_only_input_is_not_touched(engine, make_slice):
    cine_slice, _ = make_slice()
    before = cine_slice.kspace.copy()
    cine_slice.kspace.flags.writeable = False
    engine.reconstruct(cine_slice, ReconOptions())
    np.testing.assert_array_equal(cine_slice.kspace, before)


def test_create_method():
    assert isinstance(create_method("zero_filled", ReconOptions()), ZeroFilled)
    assert isinstance(create_method("cg_sense", ReconOptions()), CGSense)


def test_unknown_method_names_the_known_ones():
    with pytest.raises(ModelError, match=f"'magic'.*{', '.join(sorted(METHODS))}"):
        create_method("magic", ReconOptions())
    with pytest.raises(SettingsError, match=f"'method' must be one of {', '.join(METHODS)}; got 'magic'"):
        ReconOptions.of(method="magic")


def test_methods_are_built_once(engine, make_slice, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class StreamOptions(ReconOptions):
        series: int = option(0, "of the stream")

    built = []
    monkeypatch.setattr(CGSense, "__init__", lambda self, options, _: built.append(options))
    monkeypatch.setattr(CGSense, "__call__", lambda self, data: data.hybrid[:, 0])
    cine_slice, _ = make_slice(step=1)
    other = StreamOptions.of(series=1, low_rank_weight=0.5, units="snr", map_kernel=5)
    for options in (StreamOptions(), other, StreamOptions(), StreamOptions.of(iterations=3)):
        engine.reconstruct(cine_slice, options)
    assert [options.iterations for options in built] == [ReconOptions().cg_sense.iterations, 3]


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
        engine.reconstruct(make_slice()[0], ReconOptions(fallback="none"))


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
        engine.reconstruct(make_slice(step=1)[0], ReconOptions(fallback="none"))


def test_a_missing_gpu_is_an_error(engine, make_slice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Engine("auto").device.type == "cpu"
    with pytest.raises(ModelError, match="device to auto or cpu"):
        Engine("cuda")
    with pytest.raises(ModelError, match="device to auto or cpu"):
        engine.reconstruct(make_slice()[0], ReconOptions.of(device="cuda"))


def test_one_reconstruction_at_a_time(engine, make_slice, monkeypatch):
    inside = []

    def watch(self, data):
        inside.append(engine._turns.taken)
        return data.hybrid[:, 0]

    monkeypatch.setattr(CGSense, "__call__", watch)
    cine_slice, _ = make_slice(step=1)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: engine.reconstruct(cine_slice, ReconOptions()), range(4)))
    assert len(results) == 4
    assert inside == [True] * 4
    assert not engine._turns.taken


@pytest.mark.parametrize("shape", [(3, 4, 24, 18), (1, 1, 5, 3)])
def test_warm(engine, monkeypatch, shape):
    shapes = []
    monkeypatch.setattr(CGSense, "__call__", lambda self, data: shapes.append(data.hybrid.shape) or data.hybrid[:, 0])
    engine.warm(ReconOptions(), shape)
    assert shapes == [shape]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_gpu_agrees_with_cpu(make_slice):
    cine_slice, _ = make_slice(receiver=WHITE)
    images = [Engine(device).reconstruct(cine_slice, ReconOptions()).image for device in ("cpu", "cuda")]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["recon_core.options", "recon_core.methods", "recon_core.data", "recon_core.metrics.measures"]
)
def test_light_modules_leave_torch_alone(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- coil maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "espirit", "inati"])
def test_coil_maps_of_the_chosen_kind(engine, make_slice, smooth_maps, kind):
    cine_slice, image = make_slice(n_y=48, n_x=40, acs_lines=20)
    chosen, walsh = (engine.reconstruct(cine_slice, ReconOptions.of(maps=maps)) for maps in (kind, "walsh"))
    body = image[0] != 0
    correlation = np.abs((smooth_maps(5, 48, 40).conj() * chosen.maps).sum(0))
    assert correlation[body].min() > 0.99
    assert np.abs(chosen.maps - walsh.maps)[:, body].max() > 0.01
    assert nrmse(chosen.image, image) < 0.01
    assert chosen.notes == ()


@pytest.mark.parametrize("kind", ["espirit", "inati"])
def test_without_a_calibration_block_there_are_walsh_maps(engine, make_slice, kind):
    cine_slice, _ = make_slice(n_y=48, n_x=40, step=3, moves=False)
    chosen, walsh = (engine.reconstruct(cine_slice, ReconOptions.of(maps=maps)) for maps in (kind, "walsh"))
    np.testing.assert_array_equal(chosen.maps, walsh.maps)
    why, *others = chosen.notes
    assert re.match(rf"walsh coil maps instead of {kind}: .* at least \d adjacent measured lines .* found 1", why)
    assert tuple(others) == walsh.notes


# --- fallback ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def irregular(make_slice):
    full, _ = make_slice(n_y=48, n_x=40, step=1)
    mask = np.random.default_rng(0).random(full.mask.shape) < 0.5
    mask[:, 20:29] = True
    return CineSlice(full.kspace * mask[:, None, :, None], mask)


@pytest.mark.parametrize("fallback", ["kt_sense", "cg_sense", "zero_filled"])
def test_another_method_takes_over_what_one_cannot_do(engine, irregular, fallback):
    result = engine.reconstruct(irregular, ReconOptions.of(method="grappa", fallback=fallback))
    expected = engine.reconstruct(irregular, ReconOptions.of(method=fallback))
    np.testing.assert_array_equal(result.image, expected.image)
    assert result.method == fallback
    (note,) = result.notes
    assert note.startswith(f"{fallback} instead of grappa: grappa needs every R-th line")


def test_without_a_fallback_it_is_an_error(engine, irregular):
    with pytest.raises(DataError, match="grappa needs every R-th line"):
        engine.reconstruct(irregular, ReconOptions.of(method="grappa", fallback="none"))


def test_an_error_nobody_foresaw_is_not_hidden_by_the_fallback(engine, make_slice, monkeypatch):
    def fail(self, data):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Grappa, "__call__", fail)
    with pytest.raises(ModelError, match=r"grappa failed .* out of luck"):
        engine.reconstruct(make_slice()[0], ReconOptions.of(method="grappa"))


# --- a method that chooses -------------------------------------------------------------------------------------------


@pytest.fixture
def known_network(network, tmp_path):
    """The same, with weights that are known to add more to kt_sense than any others."""

    def put(change):
        runs = network(change)
        metrics = {"survey": {"median_gain": 9.0}}
        write_entry(tmp_path, dataclasses.replace(find_weights("crunet_mr"), reference="kt_sense", metrics=metrics))
        return runs

    return put


def test_what_chooses_has_no_image_of_its_own(engine, make_slice, known_network):
    with pytest.raises(ModelError, match="chooses one for every slice"):
        create_method("auto", ReconOptions())
    known_network(lambda image: image)
    engine.prepare(ReconOptions.of(method="auto"))
    before = engine._method.cache_info().misses
    result = engine.reconstruct(make_slice()[0], ReconOptions.of(method="auto"))
    assert result.method == "crunet_mr"
    assert result.notes[0] == "auto: crunet_mr (+9.0 dB over kt_sense on scans of its survey)"
    assert engine._method.cache_info().misses == before + 1  # kt_sense, with a sample of what the data leave open


def test_a_network_that_was_chosen_and_is_doubted_goes_to_the_fallback(engine, heart, known_network):
    known_network(lambda image: 0 * image)
    result = engine.reconstruct(heart, ReconOptions.of(method="auto"))
    assert result.method == "kt_sense"
    assert [note.partition(" (")[0] for note in result.notes[:1]] == ["auto: crunet_mr"]
    assert "kt_sense instead of crunet_mr: the image of crunet_mr leaves" in " ".join(result.notes)
    expected = engine.reconstruct(heart, ReconOptions.of(method="kt_sense"))
    np.testing.assert_array_equal(result.image, expected.image)


def test_without_weights_that_add_something_the_best_without_is_chosen(engine, make_slice):
    cine_slice, _ = make_slice()
    options = ReconOptions.of(method="auto", weights="dstdm-small")
    result = engine.reconstruct(cine_slice, options)
    assert result.method == "kt_sense"
    expected = engine.reconstruct(cine_slice, ReconOptions.of(method="kt_sense"))
    np.testing.assert_array_equal(result.image, expected.image)


def test_a_method_that_was_found_to_be_slow_is_not_chosen_again(engine, heart, known_network, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("recon_core.steps.pace.work_time", lambda: now[0])

    def slow(image):
        now[0] += 1e5
        return image

    known_network(slow)
    options = ReconOptions.of(method="auto", deadline=6000)
    first, second = (engine.reconstruct(heart, options) for _ in range(2))
    assert (first.method, second.method) == ("crunet_mr", "kt_sense")
    assert "; crunet_mr: would take about 98000 s" in second.notes[0]
    assert engine.reconstruct(heart, ReconOptions.of(method="auto")).method == "crunet_mr"  # where time does not matter


def test_the_best_candidate_is_warmed(engine, known_network):
    runs = known_network(lambda image: image)
    engine.warm(ReconOptions.of(method="auto"), (4, 3, 16, 16))
    assert len(runs) == 1


# --- doubtful images of networks --------------------------------------------------------------------------------------


@pytest.fixture
def heart(make_slice):
    """A pulsing disc with noise that was measured."""
    return make_slice(8, 5, 32, 28, acs_lines=8, pulse=0.5, snr=40, receiver=WHITE)[0]


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A function that puts a network in place whose image is made from that of cg_sense."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))

    def put(change, **facts):
        write_tiny_weights(tmp_path, "crunet_mr", **facts)
        runs = []

        def reconstruct(self, data, *, implementation="auto"):
            runs.append(data)
            return change(create_method("cg_sense", ReconOptions())(data))

        monkeypatch.setattr(CRUNetMR, "reconstruct", reconstruct)
        return runs

    return put


def with_other_heart(image):
    """Half the image is another one."""
    return torch.where(torch.arange(image.shape[-1]) < image.shape[-1] // 2, image, image.flip(-2).roll(5, -1))


def test_weights_that_are_started_from_are_read_before_the_first_slice(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    (tmp_path / "first.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"'first', .*first\.safetensors, are not those of the manifest"):
        engine.prepare(ReconOptions.of(method="unet3d_mr"))


def test_weights_that_are_started_from_are_read_once_and_again_after_a_change(engine, heart, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    options = ReconOptions.of(method="unet3d_mr", outside_range="note")
    engine.prepare(options)
    read = []
    original = trained_module.load_network
    monkeypatch.setattr(
        trained_module, "load_network", lambda entry, *more: read.append(entry.name) or original(entry, *more)
    )
    images = [engine.reconstruct(heart, options).image for _ in range(2)]
    assert read == []
    np.testing.assert_array_equal(*images)
    facts = {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0)}
    write_tiny_weights(tmp_path, "crnn_mri", name="first")
    write_entry(tmp_path, dataclasses.replace(find_weights("crnn_mri", "first"), **facts))
    other = engine.reconstruct(heart, options)
    assert read == ["second", "first"]
    made_of = f"from the image of the weights first (sha256 {find_weights('crnn_mri', 'first').sha256[:8]})"
    assert any(note.startswith(made_of) for note in other.notes)
    assert not np.allclose(other.image, images[0], rtol=1e-2)


BAD_IMAGES = {
    "zero": lambda image: 0 * image,
    "constant": lambda image: torch.full_like(image, 0.5 * image.abs().max()),
    "inverted": lambda image: -image,
    "without phase": lambda image: image * torch.exp(2j * torch.arange(image.shape[-1])),
    "twice too bright": lambda image: 2 * image,
    "blown up": lambda image: 1e25 * image,
    "noise": lambda image: image.abs().max() * torch.randn_like(image),
    "still": lambda image: image.mean(0).expand_as(image).clone(),
    "other heart": with_other_heart,
    "one frame black": lambda image: torch.where(torch.arange(8)[:, None, None] == 3, 0, image),
}
GOOD_IMAGES = {
    "the same": lambda image: image,
    "a little brighter": lambda image: 1.1 * image,
    "more of the motion": lambda image: image + 0.2 * (image - image.mean(0)),
    "slightly noisy": lambda image: image + 0.02 * image.abs().max() * torch.randn_like(image),
}


@pytest.mark.parametrize("change", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_is_replaced_by_that_of_the_fallback(engine, heart, network, change):
    network(change)
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr"))
    expected = engine.reconstruct(heart, ReconOptions.of(method="kt_sense"))
    np.testing.assert_array_equal(result.image, expected.image)
    assert (result.method, result.beside) == ("kt_sense", None)
    (note,) = result.notes
    assert note.startswith("kt_sense instead of crunet_mr: the image of crunet_mr ")
    assert note.endswith("outside_range=note sends the image all the same")


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("fallback", ["kt_sense", "cg_sense", "zero_filled", "none"])
@pytest.mark.parametrize("change", GOOD_IMAGES.values(), ids=GOOD_IMAGES)
def test_a_good_image_is_never_replaced(engine, heart, network, change, fallback, whitened):
    network(change)
    cine_slice = heart if whitened else dataclasses.replace(heart, receiver=Receiver())
    result = engine.reconstruct(cine_slice, ReconOptions.of(method="crunet_mr", fallback=fallback))
    assert result.method == "crunet_mr"
    assert not any("the image of" in note for note in result.notes)


@pytest.mark.parametrize("policy", ["fallback", "note"])
def test_a_streak_through_the_heart_is_caught(engine, heart, network, tmp_path, policy):
    """Whole images differ by little; the eye sees it at once."""

    def streaked(image):
        image[:, 8:24, 13:15] *= 0.4
        return image

    network(streaked)
    write_entry(tmp_path, dataclasses.replace(find_weights("crunet_mr"), reference="kt_sense"))
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy))
    assert result.method == ("kt_sense" if policy == "fallback" else "crunet_mr")
    assert "has a streak or spot of" in " ".join(result.notes)
    if policy == "note":
        (doubt,) = result.doubts
        assert "leaves" not in doubt


def test_images_of_both_methods_where_that_is_asked_for(engine, heart, network):
    network(lambda image: 2 * image)
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range="beside"))
    base, expected = (engine.reconstruct(heart, ReconOptions.of(method=name)) for name in ("cg_sense", "kt_sense"))
    np.testing.assert_allclose(result.image, 2 * base.image, rtol=1e-5)
    np.testing.assert_array_equal(result.beside.image, expected.image)
    assert (result.method, result.beside.method) == ("crunet_mr", "kt_sense")
    assert any(note.startswith("weights crunet_mr") for note in result.notes)
    assert result.notes[-1] == "the image of kt_sense is in a series of its own"
    (note,) = result.beside.notes
    assert note.startswith("kt_sense in addition to crunet_mr: the image of crunet_mr leaves")


@pytest.mark.parametrize("method", ["crunet_mr", "low_rank_sparse"])
def test_other_images_come_where_they_are_asked_for_and_change_nothing(engine, heart, network, method):
    network(lambda image: 1.05 * image)
    plain = engine.reconstruct(heart, ReconOptions.of(method=method))
    assert (plain.beside, plain.zero_filled) == (None, None)
    result = engine.reconstruct(heart, ReconOptions.of(method=method, extra_series="zero_filled,fallback"))
    np.testing.assert_array_equal(result.image, plain.image)
    assert (result.notes, result.doubts) == (plain.notes, ())
    for other, name in ((result.beside, "kt_sense"), (result.zero_filled, "zero_filled")):
        expected = engine.reconstruct(heart, ReconOptions.of(method=name))
        assert other.method == name
        np.testing.assert_array_equal(other.image, expected.image)
    compared = engine.reconstruct(heart, ReconOptions.of(method=method, extra_series="difference"))
    np.testing.assert_array_equal(compared.beside.image, result.beside.image)
    assert compared.zero_filled is None


def test_other_images_that_fail_cost_nothing(engine, heart, monkeypatch):
    monkeypatch.setattr(KtSense, "__call__", lambda self, data: torch.full_like(data.hybrid[:, 0], torch.nan))
    monkeypatch.setattr(ZeroFilled, "__call__", KtSense.__call__)
    options = ReconOptions.of(method="low_rank_sparse", extra_series="zero_filled,fallback")
    result = engine.reconstruct(heart, options)
    assert (result.method, result.beside, result.zero_filled) == ("low_rank_sparse", None, None)
    assert [note.partition(":")[0] for note in result.notes[-2:]] == [
        "no further images of kt_sense",
        "no further images of zero_filled",
    ]


def test_what_was_sent_instead_does_not_come_twice(engine, heart, network):
    network(lambda image: 2 * image)
    result = engine.reconstruct(
        heart, ReconOptions.of(method="crunet_mr", extra_series="zero_filled,fallback,difference")
    )
    assert (result.method, result.beside) == ("kt_sense", None)
    assert result.zero_filled is not None


def test_doubts_are_reported(engine, heart, network):
    network(lambda image: 2 * image)
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range="note"))
    (doubt,) = result.doubts
    assert doubt.startswith("the image of crunet_mr leaves")


@pytest.mark.parametrize(("policy", "fallback"), [("note", "cg_sense"), ("note", "none"), ("beside", "none")])
def test_a_bad_image_is_kept_with_a_note(engine, heart, network, policy, fallback):
    network(lambda image: 2 * image)
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy, fallback=fallback))
    assert (result.method, result.beside) == ("crunet_mr", None)
    assert any(note.startswith("the image of crunet_mr leaves") for note in result.notes)


def test_a_bad_image_without_a_fallback_is_an_error(engine, heart, network):
    network(lambda image: 2 * image)
    with pytest.raises(
        ModelError, match=r"the image of crunet_mr leaves .* at most 40 % by default, .*; outside_range=note"
    ):
        engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", fallback="none"))


@pytest.mark.parametrize("policy", ["fallback", "beside", "note"])
def test_an_image_that_is_not_finite_is_replaced_whatever_was_asked_for(engine, heart, network, policy):
    network(lambda image: image * torch.nan)
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy))
    assert (result.method, result.beside) == ("kt_sense", None)
    assert "crunet_mr gave values that are not finite in frames [0, 1, 2," in result.notes[0]
    with pytest.raises(ModelError, match="crunet_mr gave values that are not finite"):
        engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy, fallback="none"))


@pytest.mark.parametrize(
    ("policy", "runs", "method", "beside"),
    [("fallback", 0, "kt_sense", False), ("beside", 1, "crunet_mr", True), ("note", 1, "crunet_mr", False)],
)
def test_a_scan_unlike_the_training(engine, heart, network, policy, runs, method, beside):
    seen = network(lambda image: image, range=TrainingRange(acceleration=(8, 12)))
    result = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy))
    assert len(seen) == runs
    assert (result.method, result.beside is not None) == (method, beside)
    assert any("the scan is not like the training of the weights crunet_mr: accel" in note for note in result.notes)


@pytest.mark.parametrize("policy", ["fallback", "beside", "note"])
def test_a_reference_that_is_the_fallback_is_computed_once(engine, heart, network, monkeypatch, policy):
    network(lambda image: 2 * image)
    calls = []
    reconstruct = CGSense.__call__
    monkeypatch.setattr(
        "recon_core.inference.method.NetworkMethod.__call__", lambda self, data: 2 * torch.ones_like(data.hybrid[:, 0])
    )
    monkeypatch.setattr(
        CGSense, "__call__", lambda self, data: (calls.append(len(data.mask)), reconstruct(self, data))[1]
    )
    engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range=policy, fallback="cg_sense"))
    assert calls.count(len(heart.kspace)) == 1  # that of a single frame is for the coil maps


@pytest.mark.parametrize("fallback", ["kt_sense", "cg_sense", "zero_filled", "none"])
@pytest.mark.parametrize("reference", ["cg_sense", "kt_sense"])
def test_an_image_is_compared_with_the_reference_of_its_weights(engine, heart, network, reference, fallback):
    network(lambda image: 1.1 * image)
    entry = find_weights("crunet_mr")
    write_entry(entry.file.parent, dataclasses.replace(entry, limits=Limits(change=0.01), reference=reference))
    options = ReconOptions.of(method="crunet_mr", outside_range="note", fallback=fallback)
    (doubt,) = engine.reconstruct(heart, options).doubts
    ours, theirs = (engine.reconstruct(heart, ReconOptions.of(method=m)).image for m in ("cg_sense", reference))
    differences, sizes = (np.linalg.norm(series, axis=(1, 2)) for series in (1.1 * ours - theirs, theirs))
    change = differences.max() / np.sqrt(np.mean(sizes**2))
    assert doubt.startswith(
        f"the image of crunet_mr differs by {100 * change:.3g} % from that of {reference}, at most 1 %"
    )


def test_the_fallback_is_not_computed_where_nothing_is_compared_with_it(engine, heart, network, monkeypatch):
    network(lambda image: image)
    monkeypatch.setattr(ZeroFilled, "__call__", None)
    assert engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", fallback="zero_filled")).method == "crunet_mr"


def test_a_doubtful_image_takes_its_further_images_along(engine, heart, network, monkeypatch):
    network(lambda image: image)

    def spoil(self, data):
        data.extra["uncertainty"] = torch.ones_like(data.hybrid[:, 0].real)
        return torch.zeros_like(data.hybrid[:, 0])

    monkeypatch.setattr("recon_core.inference.method.NetworkMethod.__call__", spoil)
    assert engine.reconstruct(heart, ReconOptions.of(method="crunet_mr")).extra == {}
    kept = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range="beside"))
    assert list(kept.extra) == ["uncertainty"]
    assert kept.beside.extra == {}


def test_further_images_are_of_the_frames_after_the_context(engine, heart, network, monkeypatch):
    network(lambda image: image)

    def numbered(self, data):
        numbers = torch.arange(1.0, 1 + len(data.hybrid))[:, None, None].expand(data.hybrid[:, 0].shape)
        data.extra.update(uncertainty=numbers, fused=numbers[0])
        return numbers.to(torch.complex64)

    monkeypatch.setattr("recon_core.inference.method.NetworkMethod.__call__", numbered)
    whole = engine.reconstruct(heart, ReconOptions.of(method="crunet_mr", outside_range="note"))
    part = engine.reconstruct(
        dataclasses.replace(heart, context=5), ReconOptions.of(method="crunet_mr", outside_range="note")
    )
    assert len(whole.image) == 8
    np.testing.assert_array_equal(part.image, whole.image[5:])
    np.testing.assert_array_equal(part.extra["uncertainty"], whole.extra["uncertainty"][5:])
    np.testing.assert_array_equal(part.extra["uncertainty"], part.image.real)
    np.testing.assert_array_equal(part.extra["fused"], whole.extra["fused"])


def test_the_network_is_warmed_and_kept_whatever_it_makes_of_noise(engine, heart, network):
    runs = network(lambda image: 2 * image, range=TrainingRange(acceleration=(30, 40)))
    options = ReconOptions.of(method="crunet_mr", fallback="none")
    engine.warm(options, (4, 3, 16, 16))
    assert len(runs) == 1
    before = engine._method.cache_info().misses
    with pytest.raises(ModelError, match="not like the training"):
        engine.reconstruct(heart, options)
    assert engine._method.cache_info().misses == before


def test_grappa_learns_from_a_separate_reference(engine, make_slice):
    full, image = make_slice(n_y=48, n_x=40, step=1)
    cine_slice, _ = make_slice(n_y=48, n_x=40, moves=False)
    reference = np.zeros_like(full.kspace[0])
    reference[:, 20:29] = full.kspace[0, :, 20:29]
    options = ReconOptions.of(method="grappa")
    alone = engine.reconstruct(cine_slice, options)
    helped = engine.reconstruct(dataclasses.replace(cine_slice, calibration=reference), options)
    assert alone.method == "kt_sense"
    assert helped.method == "grappa"
    assert helped.notes == ("grappa: kernel of 2 x 5 instead of 4 x 5, as there are 9 reference lines",)
    assert nrmse(helped.image, image) < 0.05


# --- signal prior, warm start -----------------------------------------------------------------------------------------


def test_the_signal_prior_keeps_noise_down(engine, make_slice):
    more = {"n_frames": 6, "n_coils": 6, "n_y": 48, "n_x": 40, "step": 3, "snr": 20.0}
    whitened, image = make_slice(**more, receiver=Receiver(np.eye(6, dtype=np.complex64)))
    with_prior, without = (
        nrmse(engine.reconstruct(whitened, ReconOptions.of(signal_prior=prior)).image, image) for prior in (True, False)
    )
    assert with_prior < 0.8 * without


def test_the_signal_prior_needs_whitened_data(engine, make_slice):
    unknown, _ = make_slice(n_y=48, n_x=40, snr=20.0)
    whitened = dataclasses.replace(unknown, receiver=WHITE)
    images = {
        (name, prior): engine.reconstruct(data, ReconOptions.of(signal_prior=prior)).image
        for name, data in (("unknown", unknown), ("whitened", whitened))
        for prior in (True, False)
    }
    np.testing.assert_array_equal(images["unknown", True], images["unknown", False])
    assert nrmse(images["whitened", True], images["whitened", False]) > 0.01


def test_a_warm_start_saves_iterations(engine, make_slice):
    cine_slice, image = make_slice(
        8, 6, 48, 40, step=4, pulse=0.3, snr=50.0, receiver=Receiver(np.eye(6, dtype=np.complex64))
    )

    def remaining(warm_start, iterations):
        options = ReconOptions.of(warm_start=warm_start, iterations=iterations)
        return nrmse(engine.reconstruct(cine_slice, options).image, image)

    assert remaining(True, 5) < 0.5 * remaining(False, 30)


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "grappa", "low_rank_sparse"])
def test_a_frame_without_a_line_stays_zero(engine, make_slice, method):
    cine_slice, image = make_slice(n_y=48, n_x=40, acs_lines=20)
    cine_slice.kspace[2], cine_slice.mask[2] = 0, False
    result = engine.reconstruct(cine_slice, ReconOptions.of(method=method))
    assert result.method == method
    assert not result.image[2].any()
    assert nrmse(result.image[[0, 1, 3]], image[[0, 1, 3]]) < (0.12 if method == "zero_filled" else 0.05)
    assert any("frames 2" in note for note in result.notes) == (method == "grappa")


def test_uncertainty_is_made_where_it_is_asked_for(engine, make_slice):
    cine_slice, image = make_slice(n_y=32, n_x=24, step=2)
    options = ReconOptions.of(method="kt_sense", kt_rounds=2, extra_series="uncertainty")
    asked = engine.reconstruct(cine_slice, options)
    plain = engine.reconstruct(cine_slice, apply(options, {"extra_series": "none"}))
    np.testing.assert_array_equal(asked.image, plain.image)
    assert plain.extra == {}
    assert asked.extra["uncertainty"].shape == image.shape
    assert (asked.extra["uncertainty"] > 0).any()


def test_a_frame_without_a_line_is_filled_by_kt_sense(engine, make_slice):
    cine_slice, image = make_slice(n_y=48, n_x=40, acs_lines=20)
    cine_slice.kspace[2], cine_slice.mask[2] = 0, False
    result = engine.reconstruct(cine_slice, ReconOptions.of(method="kt_sense"))
    assert nrmse(result.image, image) < 0.05
    assert any("frames without a line" in note and "2" in note for note in result.notes)


# --- g-factor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg_sense", "grappa"])
def test_g_factor(engine, make_slice, method):
    options = ReconOptions.of(method=method, g_factor=True, fallback="none")
    full, image = make_slice(n_coils=6, n_y=48, n_x=40, step=1)
    body = image[0] != 0
    complete = engine.reconstruct(full, options).g_factor
    assert complete.shape == (48, 40)
    assert complete.dtype == np.float32
    assert complete[body].mean() == pytest.approx(1, abs=0.03)
    assert np.abs(complete[body] - 1).max() < 0.3  # 64 replicas: standard deviation 0.06
    third, _ = make_slice(n_coils=6, n_y=48, n_x=40, step=3, moves=False, acs_lines=24)
    accelerated = engine.reconstruct(third, options).g_factor
    assert np.isfinite(accelerated).all()
    assert np.median(accelerated[body]) > 1.2
    assert engine.reconstruct(third, ReconOptions.of(method=method)).g_factor is None


def test_g_factor_is_of_the_lines_and_not_of_the_start(engine, make_slice):
    cine_slice, _ = make_slice(n_y=48, n_x=40, step=3)
    warm, cold = (
        engine.reconstruct(cine_slice, ReconOptions.of(g_factor=True, warm_start=warm)).g_factor
        for warm in (True, False)
    )
    np.testing.assert_array_equal(warm, cold)


def test_g_factor_of_weights_from_each_frame(engine, make_slice):
    cine_slice, image = make_slice(n_coils=6, n_y=48, n_x=40, step=3, moves=False, acs_lines=24)
    options = ReconOptions.of(method="grappa", g_factor=True)
    of_frame, of_average = (
        engine.reconstruct(cine_slice, apply(options, {"grappa_calibration": where})).g_factor
        for where in ("frame", "average")
    )
    body = image[0] != 0  # the disc stands still: the frame says what the average says
    np.testing.assert_allclose(of_frame[body], of_average[body], rtol=1e-3)


def test_g_factor_of_the_fallback(engine, irregular):
    result, expected = (
        engine.reconstruct(irregular, ReconOptions.of(method=method, g_factor=True, fallback="cg_sense"))
        for method in ("grappa", "cg_sense")
    )
    np.testing.assert_array_equal(result.g_factor, expected.g_factor)


@pytest.mark.parametrize("method", ["zero_filled", "low_rank_sparse", "kt_sense"])
def test_no_g_factor_where_it_is_not_defined(engine, make_slice, method):
    result = engine.reconstruct(make_slice()[0], ReconOptions.of(method=method, g_factor=True))
    assert result.g_factor is None
    assert result.notes == (f"no g-factor: it is defined for cg_sense and grappa, not for {method}",)


def test_no_g_factor_of_nothing(engine):
    empty = CineSlice(np.zeros((2, 3, 12, 10), np.complex64), np.zeros((2, 12), bool))
    result = engine.reconstruct(empty, ReconOptions.of(g_factor=True))
    assert result.g_factor is None
    assert result.notes[-1] == "no g-factor: no line was measured"


# --- data that are not as they should be ------------------------------------------------------------------------------

CLASSICAL = ["cg_sense", "grappa", "kt_sense", "low_rank_sparse", "zero_filled"]
MAPS = ["auto", "walsh", "espirit", "inati"]


@pytest.mark.parametrize("method", CLASSICAL)
def test_folded_maps_are_not_silent(engine, make_slice, method):
    cine_slice, _ = make_slice(step=3, moves=False)
    result = engine.reconstruct(cine_slice, ReconOptions.of(method=method))
    assert np.isfinite(result.image).all()
    assert any("maps may be aliased" in note for note in result.notes)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("method", CLASSICAL)
def test_coils_that_are_all_equal(engine, make_slice, method, maps):
    """Nothing to unfold with, but with reference lines and lines that move the image is nearly there."""
    cine_slice, _ = make_slice(n_y=48, n_x=40, acs_lines=20)
    one, image = make_slice(n_coils=1, n_y=48, n_x=40, acs_lines=20)
    equal = CineSlice(np.repeat(one.kspace, 5, 1) / np.float32(5**0.5), cine_slice.mask)
    result = engine.reconstruct(equal, ReconOptions.of(method=method, maps=maps))
    assert nrmse(np.abs(result.image), np.abs(image)) < 0.11
    np.testing.assert_allclose(np.abs(result.maps)[:, image[0] != 0], 5**-0.5, rtol=1e-2)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("method", CLASSICAL)
def test_a_coil_of_zeros_changes_nothing(engine, make_slice, method, maps):
    cine_slice, _ = make_slice(n_y=48, n_x=40, acs_lines=20)
    cine_slice.kspace[:, 2] = 0
    others = dataclasses.replace(cine_slice, kspace=cine_slice.kspace[:, [0, 1, 3, 4]])
    options = ReconOptions.of(method=method, maps=maps)
    dead, alive = (engine.reconstruct(data, options) for data in (cine_slice, others))
    assert nrmse(np.abs(dead.image), np.abs(alive.image)) < 0.01
    assert np.abs(dead.maps[2]).max() < 1e-5


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("method", CLASSICAL)
@pytest.mark.parametrize("where", ["k-space", "calibration"])
def test_values_that_are_not_finite_are_an_error_that_says_so(engine, make_slice, where, method, maps):
    full, _ = make_slice(n_y=48, n_x=40, step=1)
    cine_slice, _ = make_slice(n_y=48, n_x=40, acs_lines=20, calibration=full.kspace[0].copy())
    options = ReconOptions.of(method=method, maps=maps)
    assert np.isfinite(engine.reconstruct(cine_slice, options).image).all()
    for value in (np.nan, np.inf):
        (cine_slice.kspace[1] if where == "k-space" else cine_slice.calibration)[2, 24, 3] = value
        with pytest.raises(ModelError, match=f"the {where} is not finite itself"):
            engine.reconstruct(cine_slice, options)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("method", CLASSICAL)
def test_nothing_but_zeros(engine, make_slice, method, maps, whitened):
    cine_slice, _ = make_slice(acs_lines=12)
    receiver = WHITE if whitened else Receiver()
    silent = dataclasses.replace(cine_slice, kspace=0 * cine_slice.kspace, receiver=receiver)
    result = engine.reconstruct(silent, ReconOptions.of(method=method, maps=maps, g_factor=True))
    assert result.method == method
    assert not result.image.any()
    assert result.g_factor is None or np.isfinite(result.g_factor).all()


def test_a_slice_that_does_not_fit_is_refused(engine, make_slice, monkeypatch):
    monkeypatch.setattr("recon_core.steps.load.available_bytes", lambda device: 100_000)
    with pytest.raises(ResourceError, match=r"4 x 5 x 24 x 18 .* needs 0.0 GiB .* on cpu; compress the coils"):
        engine.reconstruct(make_slice()[0], ReconOptions())
    monkeypatch.setattr("recon_core.steps.load.available_bytes", lambda device: None)
    assert engine.reconstruct(make_slice()[0], ReconOptions()).image.any()


# --- what becomes of an image afterwards ------------------------------------------------------------------------------


def cut_slice(data, first_line=0, first_column=0):
    """The slice without its first lines and columns."""
    mask = data.mask.copy()
    mask[:, :first_line] = False
    columns = np.arange(data.kspace.shape[3]) >= first_column
    kspace = data.kspace * mask[:, None, :, None] * columns
    return dataclasses.replace(data, kspace=kspace, mask=mask, receiver=Receiver(columns=columns))


@pytest.mark.parametrize("how", ["pocs", "homodyne"])
@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "grappa", "low_rank_sparse", "kt_sense"])
@pytest.mark.parametrize(("cut", "axis"), [((9, 0), "ky"), ((0, 7), "kx")])
def test_what_was_not_measured_is_completed(engine, make_slice, method, how, cut, axis):
    data, image = make_slice(n_y=32, n_x=24, step=1, pulse=0.3)
    data = cut_slice(data, *cut)
    options = ReconOptions.of(method=method, fallback="none", low_rank_weight=1e-3, sparse_weight=1e-3)
    plain = engine.reconstruct(data, options)
    completed = engine.reconstruct(data, apply(options, {"partial_fourier": how}))
    truth = np.abs(image)
    errors = [nrmse(best_scale(np.abs(one.image), truth) * np.abs(one.image), truth) for one in (plain, completed)]
    assert errors[1] < 0.75 * errors[0]
    assert not [note for note in plain.notes if "completes" in note]
    (note,) = (note for note in completed.notes if "completes" in note)
    assert how in note
    assert f"along {axis}," in note


def test_a_scan_that_lacks_nothing_is_not_touched(engine, make_slice):
    data, _ = make_slice(step=2)
    plain = engine.reconstruct(data, ReconOptions())
    completed = engine.reconstruct(data, ReconOptions.of(partial_fourier="pocs"))
    np.testing.assert_array_equal(completed.image, plain.image)
    assert completed.notes == plain.notes


def test_partial_fourier_leaves_images_of_networks_alone(engine, heart, network):
    network(lambda image: image)
    data = cut_slice(heart, first_column=heart.kspace.shape[3] // 3)
    options = ReconOptions.of(method="crunet_mr", outside_range="note")
    plain = engine.reconstruct(data, options)
    result = engine.reconstruct(data, apply(options, {"partial_fourier": "pocs"}))
    np.testing.assert_array_equal(result.image, plain.image)
    assert set(result.notes) - set(plain.notes) == {"partial_fourier=pocs is for classical methods, not crunet_mr"}


def test_the_filter_is_on_the_image_of_any_method(engine, make_slice):
    data, _ = make_slice(n_y=24, n_x=18, step=1)
    plain = engine.reconstruct(data, ReconOptions.of(method="zero_filled"))
    filtered = engine.reconstruct(data, ReconOptions.of(method="zero_filled", kspace_filter=1.0))
    kspace, windowed = (fft(torch.tensor(one.image), (-2, -1)).abs().mean(0).numpy() for one in (plain, filtered))
    np.testing.assert_allclose(windowed[12, 9], kspace[12, 9], rtol=1e-5)
    wanted = np.outer(*(np.cos(np.pi / 2 * (np.arange(n) - n // 2) / (n // 2 + 0.5)) ** 2 for n in (24, 18)))
    np.testing.assert_allclose(windowed, wanted * kspace, atol=1e-4)


def test_what_becomes_of_an_image_afterwards_makes_no_other_method(engine):
    first = engine._build("cg_sense", ReconOptions())
    assert engine._build("cg_sense", ReconOptions.of(partial_fourier="pocs", kspace_filter=0.3)) is first


# --- units of the noise -----------------------------------------------------------------------------------------------


def in_units(engine, data, **options):
    return engine.reconstruct(data, ReconOptions.of(**{"method": "zero_filled", "units": "snr", **options}))


def test_units_of_the_noise_are_those_of_whitened_data_with_all_lines(engine, make_slice):
    plain, _ = make_slice(step=1)
    data = dataclasses.replace(plain, receiver=WHITE)
    assert data.mask.all()
    expected = engine.reconstruct(plain, ReconOptions.of(method="zero_filled"))
    result = in_units(engine, data)
    assert (expected.units, result.units) == ("relative", "snr")
    np.testing.assert_allclose(result.image, expected.image, rtol=1e-4, atol=1e-6)
    # the noise of an average of four is half as strong, that of half of the columns by the root of a half
    averaged = in_units(engine, dataclasses.replace(data, noise_share=0.25))
    np.testing.assert_allclose(averaged.image, 2 * result.image, rtol=1e-4, atol=1e-6)
    columns = np.arange(data.kspace.shape[3]) % 2 == 0
    narrow = in_units(engine, dataclasses.replace(data, receiver=dataclasses.replace(WHITE, columns=columns)))
    np.testing.assert_allclose(narrow.image, result.image / np.sqrt(columns.mean()), rtol=1e-4, atol=1e-6)


def test_a_frame_with_fewer_lines_has_less_noise_and_an_empty_one_none(engine, make_slice):
    plain, _ = make_slice(step=1)
    mask = plain.mask.copy()
    mask[0, ::2] = False
    mask[1] = False
    data = dataclasses.replace(plain, kspace=plain.kspace * mask[:, None, :, None], mask=mask)
    relative = engine.reconstruct(data, ReconOptions.of(method="zero_filled")).image
    image = in_units(engine, dataclasses.replace(data, receiver=WHITE)).image
    np.testing.assert_allclose(image[0], relative[0] / np.sqrt(mask[0].mean()), rtol=1e-4, atol=1e-6)
    assert not image[1].any()


@pytest.mark.parametrize(
    ("options", "changes", "why"),
    [
        ({"method": "low_rank_sparse"}, {}, "low_rank_sparse is not known"),
        ({"kspace_filter": 0.5}, {}, "kspace_filter change the noise"),
        ({}, {"receiver": Receiver()}, "no noise was measured"),
        ({}, {"noise_share": None}, "noise of a line is not known"),
        ({}, {"receiver": dataclasses.replace(WHITE, scaled=False)}, "noise of a line is not known"),
    ],
)
def test_units_of_noise_that_is_not_known_are_relative(engine, make_slice, options, changes, why):
    plain, _ = make_slice()
    data = dataclasses.replace(plain, **{"receiver": WHITE, **changes})
    result = in_units(engine, data, **options)
    assert result.units == "relative"
    assert why in " ".join(result.notes)
