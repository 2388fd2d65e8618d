"""The reconstruction on a GPU against that on the CPU.

Every test with the fixture `gpu` runs twice: on an NVIDIA GPU (marker ``cuda``), and on one that the CPU plays, which
shows at every machine that nothing is left on the wrong device, and when the host waits. Networks have small untrained
weights. ``pytest -m cuda tests/test_cuda.py`` is for the GPU.
"""

import contextlib
import dataclasses
import math
import sys
import weakref

import numpy as np
import pytest
import torch

from gadgets.connection.client import send
from gadgets.connection.server import SharedEngine
from gadgets.files.images import read_images
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, write_simulation
from gadgets.wire.messages import ConfigText
from recon_core.api import reconstruct
from recon_core.classical.cg_sense import CGSense
from recon_core.data import CineSlice, HybridSlice
from recon_core.engine import Engine
from recon_core.errors import ResourceError
from recon_core.inference.method import NetworkMethod
from recon_core.inference.precision import precision_of_convolutions
from recon_core.methods import METHODS
from recon_core.networks import crunet_mr
from recon_core.off_grid import transforms
from recon_core.options import NetworkOptions, ReconOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.memory import available_bytes, predicted_bytes
from recon_core.physics.sense import PlaneSenseOperator, SenseOperator
from recon_core.simulate.radial import simulate_radial
from tests.bench.networks import scan
from tests.helpers.emulated_gpu import EmulatedGPU
from tests.helpers.networks import NETWORKS, TINY, tiny, write_tiny_weights
from tests.helpers.peers import serving

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPUS = ["emulated", pytest.param("cuda", marks=needs_gpu)]
#: Largest error of an image relative to float32 on the CPU, by the precision of the convolutions.
LIMITS = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1.5e-1, "float16": 2e-2}
#: Settings with which the methods take little time; what they set is the same on both devices.
SHORT = {"maps": "walsh", "fallback": "none", "outside_range": "note", "cg_sense.iterations": 4}
OWN = {"dstdm": {"sampler_steps": 2}, "low_rank_sparse": {"low_rank_sparse_iterations": 4}}
#: What runs on the emulated GPU with the quick tests.
QUICK = {"cg_sense", "kt_sense", "crunet_mr", "espirit"}


@pytest.fixture(params=GPUS)
def gpu(request):
    """The GPU: an `EmulatedGPU`, or None where it is a real one."""
    with EmulatedGPU() if request.param == "emulated" else contextlib.nullcontext() as emulated:
        yield emulated


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights, and the networks that have some there."""
    return tmp_path_factory.mktemp("weights"), set()


@pytest.fixture(autouse=True)
def _tiny_weights(request, weights, monkeypatch):
    """Weights of the network of the test."""
    folder, known = weights
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    wanted = {"crunet_mr"} if method is None else set(NETWORKS) if method == "auto" else {method} & set(NETWORKS)
    if wanted - known:
        write_tiny_weights(folder, *wanted - known)
        known |= wanted
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(folder))


def relative(tested, expected):
    tested, expected = torch.as_tensor(tested).cpu(), torch.as_tensor(expected).cpu()
    return float((tested - expected).norm() / expected.norm())


def moved(data, device="cuda"):
    """A slice on a device."""
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return HybridSlice(**{key: value.to(device) if torch.is_tensor(value) else value for key, value in values.items()})


def cine(n_frames=6, n_coils=4, n_y=24, n_x=20):
    """A slice as it comes from a scan."""
    data = scan(n_frames, n_coils, n_y, n_x, varied=True)
    return CineSlice(fft(data.hybrid, (-1,)).numpy(), data.mask.numpy())


# --- operators --------------------------------------------------------------------------------------------------------


def plain(maps, mask):
    """A and A^H by the definition, with 2-D transforms of a mask ``(frame, ky, kx)``."""

    def forward(image):
        return mask[:, None] * fft(maps * image[:, None], (-2, -1))

    def adjoint(kspace):
        return (maps.conj() * ifft(mask[:, None] * kspace, (-2, -1))).sum(1)

    return forward, adjoint


def arrays(n_frames=5, n_coils=3, n_y=30, n_x=14):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    maps = draw(n_coils, n_y, n_x)
    return maps / torch.linalg.vector_norm(maps, dim=0), draw(n_frames, n_y, n_x), draw(n_frames, n_coils, n_y, n_x)


IMPLEMENTATIONS = ["torch", pytest.param("cupy", marks=needs_gpu)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pattern", ["random", "regular"])
def test_the_encoding_is_the_plain_definition(gpu, implementation, pattern):
    if implementation == "cupy":
        pytest.importorskip("cupy", reason="needs CuPy")
        if gpu is not None:
            pytest.skip("CuPy needs a GPU")
    maps, image, kspace = arrays()
    lines = torch.rand(5, 30, generator=torch.Generator().manual_seed(2)) < 0.4
    if pattern == "regular":
        lines = (torch.arange(30) + torch.arange(5)[:, None]) % 3 == 0
    forward, adjoint = plain(maps, lines[:, :, None].expand(-1, -1, 14))
    operator = SenseOperator(maps.to("cuda", torch.complex64), lines.to("cuda"), implementation=implementation)
    image_there = image.to("cuda", torch.complex64)
    hybrid = ifft(kspace, (-1,)).to("cuda", torch.complex64)
    assert relative(fft(operator.forward(image_there), (-1,)), forward(image).to(torch.complex64)) < 1e-5
    assert relative(operator.adjoint(hybrid), adjoint(kspace).to(torch.complex64)) < 1e-5
    assert relative(operator.normal(image_there), adjoint(forward(image)).to(torch.complex64)) < 1e-5


def test_the_encoding_of_points_is_the_plain_definition(gpu):
    maps, image, kspace = arrays()
    points = torch.rand(5, 30, 14, generator=torch.Generator().manual_seed(2)) < 0.4
    forward, adjoint = plain(maps, points)
    operator = PlaneSenseOperator(maps.to("cuda", torch.complex64), points.to("cuda"))
    assert relative(operator.forward(image.to("cuda", torch.complex64)), forward(image).to(torch.complex64)) < 1e-5
    assert relative(operator.adjoint(kspace.to("cuda", torch.complex64)), adjoint(kspace).to(torch.complex64)) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_data_consistency_is_the_plain_definition(gpu, implementation):
    if implementation == "cupy":
        pytest.importorskip("cupy", reason="needs CuPy")
        if gpu is not None:
            pytest.skip("CuPy needs a GPU")
    maps, image, kspace = arrays()
    lines = torch.rand(5, 30, generator=torch.Generator().manual_seed(3)) < 0.4
    mask = lines[:, :, None].expand(-1, -1, 14)
    forward, adjoint = plain(maps, mask)
    kspace = mask[:, None] * kspace
    consistency = DataConsistency(
        maps.to("cuda", torch.complex64),
        lines.to("cuda"),
        ifft(kspace, (-1,)).to("cuda", torch.complex64),
        implementation=implementation,
    )
    there = image.to("cuda", torch.complex64)
    predicted = fft(maps * image[:, None], (-2, -1))
    replaced = torch.where(mask[:, None], kspace, predicted)
    hard = (maps.conj() * ifft(replaced, (-2, -1))).sum(1)
    residual = adjoint(forward(image) - kspace)
    assert relative(consistency.hard(there), hard.to(torch.complex64)) < 1e-5
    assert relative(consistency.gradient(there, 0.5), (image - 0.5 * residual).to(torch.complex64)) < 1e-5
    assert relative(consistency.weighted(there, 3.0), (image - 0.75 * residual).to(torch.complex64)) < 1e-5
    solved = consistency.solve(there, 0.5, 60).cpu().to(torch.complex128)
    # where the gradient of ||A x - y||^2 + lambda ||x - z||^2 is zero
    gradient = adjoint(forward(solved) - kspace) + 0.5 * (solved - image)
    assert gradient.norm() < 1e-4 * residual.norm()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_iterations_end_where_those_of_the_cpu_do(gpu, tolerance):
    """The host asks seldom whether all is solved; what the GPU did meanwhile must not show."""
    data = scan(4, 4, 24, 20, varied=True)
    options = ReconOptions.of(**{"cg_sense.tolerance": tolerance, "cg_sense.iterations": 30}).cg_sense
    expected = CGSense(options)(data)
    tested = CGSense(options)(moved(data))
    assert relative(tested, expected) < (1e-6 if gpu else 1e-4)


# --- methods and networks ---------------------------------------------------------------------------------------------


def some_quick(names):
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("method", some_quick(METHODS))
def test_every_method_gives_the_images_of_the_cpu(gpu, method):
    options = ReconOptions.of(method=method, **{**SHORT, **OWN.get(method, {})})
    expected = Engine("cpu").reconstruct(cine(), options)
    tested = Engine("cuda").reconstruct(cine(), options)
    assert tested.method == expected.method
    assert relative(tested.maps, expected.maps) < 1e-4
    assert relative(tested.image, expected.image) < LIMITS["float32"]


@pytest.mark.parametrize("library", ["finufft", pytest.param("cufinufft", marks=needs_gpu)])
@pytest.mark.parametrize("method", some_quick(["zero_filled", "cg_sense", "low_rank_sparse", "kt_sense", "crunet_mr"]))
def test_spokes_give_the_images_of_the_cpu(gpu, method, library, monkeypatch):
    pytest.importorskip(library, reason=f"needs {library}")
    if library == "finufft":
        monkeypatch.setitem(sys.modules, "cufinufft", None)
    elif gpu is not None:
        pytest.skip("cufinufft needs a GPU")
    monkeypatch.setattr("recon_core.api.shared_engine", lambda: Engine("cpu"))  # the shared one would keep the device
    transforms._cufinufft.cache_clear()
    scan = simulate_radial(frames=4, size=24, coils=4, spokes=9)
    given = {"trajectory": scan.trajectory, "matrix": (24, 24), "noise_covariance": scan.noise_covariance, **SHORT}
    expected, tested = (reconstruct(scan.kspace, method, **given, device=device) for device in ("cpu", "cuda"))
    transforms._cufinufft.cache_clear()
    assert tested.method == expected.method == method
    assert relative(tested.image, expected.image) < (LIMITS["float32"] if library == "finufft" else 1e-3)


@pytest.mark.parametrize("maps", some_quick(["auto", "espirit", "inati"]))
def test_coil_maps_and_extra_images_are_those_of_the_cpu(gpu, maps):
    options = ReconOptions.of(**{**SHORT, "maps": maps}, extra_series="zero_filled", g_factor=True)
    expected = Engine("cpu").reconstruct(cine(), options)
    tested = Engine("cuda").reconstruct(cine(), options)
    assert relative(tested.maps, expected.maps) < 1e-3
    assert relative(tested.image, expected.image) < 1e-3


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", some_quick(NETWORKS))
def test_lower_precision_stays_near(gpu, method, precision):
    if gpu is not None and precision != "bfloat16":
        pytest.skip("a precision of the GPU")
    options = {**SHORT, **OWN.get(method, {}), "method": method}
    expected = Engine("cpu").reconstruct(cine(), ReconOptions.of(**options, precision="float32")).image
    tested = Engine("cuda").reconstruct(cine(), ReconOptions.of(**options, precision=precision)).image
    assert np.isfinite(tested).all()
    assert relative(tested, expected) < LIMITS[precision]


def test_the_settings_of_torch_are_as_before(gpu):
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [one.allow_tf32 for one in flags]
    with precision_of_convolutions("tf32", torch.device("cuda")):
        assert [one.allow_tf32 for one in flags] == [True, True]
    with precision_of_convolutions("float32", torch.device("cuda")):
        assert [one.allow_tf32 for one in flags] == [False, False]
    assert [one.allow_tf32 for one in flags] == before


DEEPER = {"cascades", "iterations", "phases"}


@pytest.mark.parametrize("method", some_quick(name for name in NETWORKS if DEEPER & TINY[name].keys()))
def test_the_host_does_not_wait_within_cascades(method):
    """As often with three as with two: a network must only give the GPU work, so that this has none to wait for."""
    (depth,) = DEEPER & TINY[method].keys()
    data = scan(4, 3, 16, 16, varied=True)
    waits = []
    for count in (2, 3):
        with pytest.MonkeyPatch.context() as patch, EmulatedGPU() as emulated, torch.inference_mode():
            patch.setitem(TINY[method], depth, count)
            network, there = tiny(method).to("cuda"), moved(data)
            emulated.waits.clear()
            network.reconstruct(there)
            waits.append(dict(emulated.waits))
    assert waits[0] == waits[1]


# --- memory -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(gpu, n_bytes):
    """So much memory is free on the GPU."""
    if gpu is not None:
        gpu.free_bytes = n_bytes
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + n_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def large(gpu):
    """A slice that takes much of the memory of a limited GPU."""
    return scan(8, 4, 24, 20) if gpu else scan(32, 8, 192, 192)


def test_half_the_memory_is_enough_in_windows(gpu):
    method = NetworkMethod("crunet_mr", NetworkOptions())
    with torch.inference_mode():
        data = moved(large(gpu))
        shape = data.hybrid.shape
        needed = tiny("crunet_mr").to("cuda").working_bytes(tuple(shape)) + 8 * shape.numel()
        expected = method(data).cpu()
        assert not any("windows" in note for note in data.notes)
        with limited(gpu, needed // 2):
            image = method(data).cpu()
    assert any("do not fit into memory" in note for note in data.notes)
    assert relative(image, expected) < 0.5  # windows are other images, of untrained weights


def test_what_is_kept_for_later_counts_as_free(gpu):
    if gpu is not None:
        pytest.skip("the emulated GPU keeps nothing")
    torch.cuda.empty_cache()
    free = available_bytes(torch.device("cuda"))
    kept = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    assert available_bytes(torch.device("cuda")) < free - (1 << 29)
    del kept
    assert torch.cuda.memory_reserved() >= 1 << 30
    assert available_bytes(torch.device("cuda")) > free - (1 << 28)


def test_a_slice_that_does_not_fit_is_refused_before(gpu):
    cine_slice = cine() if gpu else cine(32, 8, 192, 192)
    needed = predicted_bytes("sense", cine_slice.kspace.shape, device="cuda")
    with limited(gpu, needed // 2), pytest.raises(ResourceError, match="are free on cuda"):
        Engine("cuda").reconstruct(cine_slice, ReconOptions.of(**SHORT))


@pytest.mark.parametrize("method", ["crunet_mr"])
def test_a_slice_that_gave_way_finds_its_network_where_it_was(gpu, method, monkeypatch):
    """In the middle of its network on the GPU, another slice is reconstructed with the same weights on the CPU."""
    engine, whole = Engine("cuda"), crunet_mr.CRUNetMR.reconstruct
    places = []

    def giving_way(self, data, **more):
        if data.hybrid.device.type == "cuda":
            other = ReconOptions.of(method=method, device="cpu", **SHORT)
            engine._reconstruct(cine(), other, math.inf)
        places.append((data.hybrid.device.type, next(self.parameters()).device.type))
        return whole(self, data, **more)

    monkeypatch.setattr(crunet_mr.CRUNetMR, "reconstruct", giving_way)
    assert np.isfinite(engine.reconstruct(cine(), ReconOptions.of(method=method, **SHORT)).image).all()
    assert places == [("cpu", "cpu"), ("cuda", "cuda")]


class Held:
    """Something large that a method made before the memory ended."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_memory_that_ends_in_a_cascade_is_given_back(device, monkeypatch):
    """The fallback runs, with all that the network had taken; and the next slice is reconstructed as ever."""
    alive, at_fallback, solve = [], [], CGSense.__call__

    def ending(*_):
        held = Held()
        alive.append(weakref.ref(held))
        raise torch.cuda.OutOfMemoryError

    def solving(self, data):
        at_fallback.extend(one() for one in alive)
        return solve(self, data)

    engine = Engine(device)
    options = ReconOptions.of(method="crunet_mr", **{**SHORT, "fallback": "cg_sense"})
    with monkeypatch.context() as patch:
        patch.setattr(CGSense, "__call__", solving)
        patch.setattr(crunet_mr.Cascade, "forward", ending)
        result = engine.reconstruct(cine(), options)
    assert result.method == "cg_sense"
    assert any("crunet_mr does not fit into the memory of the GPU" in note for note in result.notes)
    assert len(at_fallback) >= 1
    assert not any(at_fallback)
    assert engine.reconstruct(cine(), options).method == "crunet_mr"


@pytest.mark.parametrize(
    ("place", "message"), [(CGSense, "cg_sense"), (SenseOperator, r"a slice of 6 x 4 x 24 x 20 .*")]
)
def test_memory_that_ends_is_an_error_of_its_own(place, message, monkeypatch):
    """In the method, and in the coil maps before it."""
    engine, options = Engine("cpu"), ReconOptions.of(method="cg_sense", **SHORT)

    def ending(*_, **__):
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(place, "__call__" if place is CGSense else "adjoint", ending)
        with pytest.raises(ResourceError, match=rf"^{message} does not fit .*virtual_coils"):
            engine.reconstruct(cine(), options)
    assert np.isfinite(engine.reconstruct(cine(), options).image).all()


# --- engine and server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("method", ["cg_sense", "kt_sense", "crunet_mr"])
def test_the_server_sends_the_images_of_a_replay_on_the_cpu(device, method, tmp_path):
    plan = ScanPlan(matrix_x=48, matrix_y=40, coils=4, frames=6, acceleration=2)
    write_simulation(plan, tmp_path / "scan.h5")
    settings = {"method": method, "outside_range": "note"}
    replay(tmp_path / "scan.h5", tmp_path / "cpu.h5", Settings.of(**settings, device="cpu"), SharedEngine())
    with serving(engine=Engine(device)) as server:
        nodes = "".join(f"<{key}>{value}</{key}>" for key, value in settings.items())
        result = send(
            tmp_path / "scan.h5",
            tmp_path / "sent.h5",
            ConfigText(f"<configuration>{nodes}</configuration>"),
            server.address,
        )
    assert result.good
    (expected,), (images,) = (read_images(tmp_path / f"{name}.h5").values() for name in ("cpu", "sent"))
    assert len(images) == len(expected)
    tested, wanted = (np.stack([image.data[0, 0] for image in some]).astype(np.float32) for some in (images, expected))
    assert relative(tested, wanted) < 1e-3
