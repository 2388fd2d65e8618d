import contextlib
import ctypes
import importlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from recon_core.errors import ModelError
from recon_core.physics import kernels
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.kernels import CupyKernels, TorchKernels, choose_kernels
from recon_core.physics.sense import SenseOperator
from tests.helpers.emulated_gpu import EmulatedGPU
from tests.helpers.numpy_kernels import NumpyKernels

SHAPES = [
    # sets, frames, coils, x, y
    (1, 1, 1, 4, 5),
    (1, 3, 4, 6, 9),
    (2, 1, 30, 3, 8),
    (2, 5, 3, 1, 7),
]


def make(shape, dtype=torch.complex64, device="cpu"):
    n_sets, n_frames, n_coils, n_x, n_y = shape
    generator = torch.Generator().manual_seed(n_coils)
    maps = torch.randn(n_sets, n_coils, n_x + 2, n_y, dtype=dtype, generator=generator)
    image = torch.randn(n_sets, n_frames, n_x + 2, n_y, dtype=dtype, generator=generator)
    lines = torch.randn(shape, dtype=dtype, generator=generator)
    mask = torch.rand(n_sets, n_frames, n_y, generator=generator) < 0.5
    maps, image, lines, mask = (array.to(device) for array in (maps, image, lines, mask))
    return maps[:, :, 1:-1], image[:, :, 1:-1], lines, mask  # a portion of the columns: views with gaps


def check(tested, dtype, shape, device="cpu"):
    """The three steps against their definitions in torch."""
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.complex64 else {"rtol": 1e-12, "atol": 1e-12}
    maps, image, lines, mask = make(shape, dtype, device)
    expanded = torch.full_like(lines, torch.nan)
    tested.expand(maps, image, expanded)
    torch.testing.assert_close(expanded, maps[:, None] * image[:, :, None], **tolerance)

    sampled = lines.clone()
    tested.sample(sampled, tested.weights(mask, dtype))
    torch.testing.assert_close(sampled, torch.where(mask[:, :, None, None], lines, 0), rtol=0, atol=0)

    padded = torch.full((*image.shape[:2], image.shape[2] + 2, image.shape[3]), torch.nan, dtype=dtype, device=device)
    tested.combine(lines.clone(), maps, padded[:, :, 1:-1])
    torch.testing.assert_close(padded[:, :, 1:-1], (lines * maps[:, None]).sum(2), **tolerance)
    assert padded[:, :, [0, -1]].isnan().all()


@pytest.mark.parametrize("tested", [TorchKernels(), NumpyKernels()])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_their_definitions(tested, dtype, shape):
    check(tested, dtype, shape)


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("workspace_bytes", [1, 1500, None])
def test_numpy_path_of_the_operator_is_the_torch_path(monkeypatch, per_frame, workspace_bytes):
    """The algorithm with foreign kernels on torch's memory, as CuPy is used, without a GPU."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(*(5, 4) if per_frame else (4,), 9, 6, dtype=torch.complex64, generator=generator)
    mask = torch.rand(5, 9, generator=generator) < 0.4
    measured = torch.randn(5, 4, 9, 6, dtype=torch.complex64, generator=generator)
    image = torch.randn(5, 9, 6, dtype=torch.complex64, generator=generator)
    expected = DataConsistency(maps, mask, measured, implementation="torch")
    monkeypatch.setattr("recon_core.physics.sense.choose_kernels", lambda *_: NumpyKernels())
    tested = DataConsistency(maps, mask, measured, workspace_bytes=workspace_bytes)
    assert isinstance(tested.operator, SenseOperator)
    assert isinstance(tested.operator._kernels, NumpyKernels)
    torch.testing.assert_close(tested.zero_filled, expected.zero_filled, rtol=1e-5, atol=1e-5)
    for apply in (
        lambda consistency, x: consistency.hard(x),
        lambda consistency, x: consistency.weighted(x, 0.7),
        lambda consistency, x: consistency.gradient(x, 0.5),
        lambda consistency, x: consistency.solve(x, 0.5, 4),
    ):
        torch.testing.assert_close(apply(tested, image), apply(expected, image), rtol=1e-5, atol=1e-4)
        x = image.clone().requires_grad_()
        y = image.clone().requires_grad_()
        apply(tested, x).abs().sum().backward()
        apply(expected, y).abs().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)


def test_choice():
    cpu = torch.device("cpu")
    assert isinstance(choose_kernels("torch", cpu), TorchKernels)
    assert isinstance(choose_kernels("auto", cpu), TorchKernels)
    with pytest.raises(ModelError, match="choose auto, torch or cupy"):
        choose_kernels("numpy", cpu)
    with pytest.raises(ModelError, match="needs a GPU"):
        choose_kernels("cupy", cpu)


@pytest.fixture
def without_cupy(monkeypatch):
    def import_module(name):
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(importlib, "import_module", import_module)
    kernels._cupy_kernels.cache_clear()
    yield
    kernels._cupy_kernels.cache_clear()


def test_a_cupy_that_cannot_compile_is_as_none(monkeypatch):
    """Such as one for another CUDA than that of torch: it is imported, and its first kernel fails."""

    def kernel(*_):
        def run(*_, **__):
            raise RuntimeError("CuPy failed to load libnvrtc.so.12\nand more")

        return run

    stand_in = types.SimpleNamespace(
        ElementwiseKernel=kernel,
        asarray=lambda tensor: tensor,
        cuda=types.SimpleNamespace(Device=contextlib.nullcontext, ExternalStream=contextlib.nullcontext),
    )
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    kernels._cupy_kernels.cache_clear()
    try:
        with EmulatedGPU():
            assert isinstance(choose_kernels("auto", torch.device("cuda")), TorchKernels)
            with pytest.raises(ModelError, match=r"RuntimeError: CuPy failed to load libnvrtc.so.12\).*cuda13"):
                choose_kernels("cupy", torch.device("cuda"))
    finally:
        kernels._cupy_kernels.cache_clear()


def test_missing_cupy_names_the_remedy(without_cupy):
    gpu = torch.device("cuda:0")
    with pytest.raises(ModelError, match=r"pip install cinestream\[cuda\]"):
        choose_kernels("cupy", gpu)
    assert isinstance(choose_kernels("auto", gpu), TorchKernels)


def test_cupy_runs_on_the_stream_and_the_memory_of_torch(monkeypatch):
    """What is handed to CuPy, recorded by a stand-in."""
    calls, stack = [], []

    class Context:
        def __init__(self, kind):
            self._kind = kind

        def __call__(self, value):
            return type(self)((self._kind, value))

        def __enter__(self):
            stack.append(self._kind)

        def __exit__(self, *_):
            stack.pop()

    def kernel(inputs, outputs, body, name):
        def launch(*arguments):
            n_inputs = inputs.count(",") + 1
            assert len(arguments) == n_inputs + outputs.count(",") + 1
            calls.append((name, list(stack), [getattr(a, "data_ptr", lambda a=a: int(a))() for a in arguments]))

        return launch

    stand_in = types.SimpleNamespace(
        ElementwiseKernel=kernel,
        asarray=lambda tensor: tensor,
        cuda=types.SimpleNamespace(Device=Context("device"), ExternalStream=Context("stream")),
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    tested = CupyKernels(stand_in)
    maps, image, lines, mask = make((2, 5, 3, 4, 7))
    tested.expand(maps, image, lines)
    tested.sample(lines, tested.weights(mask, lines.dtype))
    tested.combine(lines, maps, image)
    where = [("device", None), ("stream", 77)]
    pointers = {name: tensor.data_ptr() for name, tensor in (("maps", maps), ("image", image), ("lines", lines))}
    assert calls == [
        ("cinestream_expand", where, [pointers["image"], pointers["maps"], 3, 28, 5, pointers["lines"]]),
        ("cinestream_sample", where, [mask.data_ptr(), 7, 84, pointers["lines"]]),
        ("cinestream_combine", where, [pointers["lines"], pointers["maps"], 3, 28, 5, pointers["image"]]),
    ]


class CompiledKernel:
    """CuPy's ElementwiseKernel as a C++ loop over threads: raw arrays by logical index, the others by thread."""

    def __init__(self, folder, inputs, outputs, body, name):
        self._parameters = [parameter.split() for parameter in f"{inputs}, {outputs}".split(", ")]
        self._n_inputs = inputs.count(",") + 1
        arguments, elements = [], []
        for *kind, argument in self._parameters:
            constant = "const " if argument in [words[-1] for words in self._parameters[: self._n_inputs]] else ""
            if kind[-1] == "int32":
                arguments.append(f"const int {argument}")
            elif kind[0] == "raw":
                arguments.append(f"{constant}{kind[-1]}* {argument}")
            else:
                arguments.append(f"{constant}{kind[-1]}* {argument}_")
                elements.append(f"{constant}{kind[-1]}& {argument} = {argument}_[i];")
        source = folder / f"{name}.cpp"
        source.write_text(
            f"#include <complex>\n#include <cstddef>\ntypedef std::complex<float> T;\n"
            f'extern "C" void run(std::ptrdiff_t size, {", ".join(arguments)}) {{\n'
            f"for (std::ptrdiff_t i = 0; i < size; ++i) {{ {' '.join(elements)} {body} }} }}\n"
        )
        library = folder / f"{name}.so"
        subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        self._run = ctypes.CDLL(library).run
        self._run.restype = None

    def __call__(self, *arguments):
        copies, values, size = [], [], None
        for (*kind, _), argument in zip(self._parameters, arguments, strict=True):
            if kind[-1] == "int32":
                values.append(ctypes.c_int(int(argument)))
                continue
            copies.append((argument, argument.contiguous().clone()))
            values.append(ctypes.c_void_p(copies[-1][1].data_ptr()))
            if kind[0] != "raw":
                size = argument.numel()
        self._run(ctypes.c_ssize_t(size), *values)
        target, written = copies[-1]
        target.copy_(written)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler to run the bodies of the CUDA kernels")
def test_bodies_of_the_fused_kernels(monkeypatch, tmp_path):
    """Index arithmetic and all, run on the CPU."""
    stand_in = types.SimpleNamespace(
        ElementwiseKernel=lambda *text: CompiledKernel(tmp_path, *text),
        asarray=lambda tensor: tensor,
        cuda=types.SimpleNamespace(Device=contextlib.nullcontext, ExternalStream=contextlib.nullcontext),
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    tested = CupyKernels(stand_in)
    for shape in SHAPES:
        check(tested, torch.complex64, shape)


@pytest.fixture
def cupy_kernels():
    pytest.importorskip("cupy", reason="needs CuPy")
    return choose_kernels("cupy", torch.device("cuda"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnTheGpu:
    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_fused_steps_are_their_definitions(self, cupy_kernels, dtype, shape):
        check(cupy_kernels, dtype, shape, "cuda")

    @pytest.mark.parametrize("workspace_bytes", [1, 1500, None])
    @pytest.mark.parametrize("own_stream", [False, True])
    def test_operator_is_the_torch_one(self, cupy_kernels, workspace_bytes, own_stream):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(8, 36, 20, dtype=torch.complex64, generator=generator).cuda()
        mask = (torch.rand(5, 36, generator=generator) < 0.4).cuda()
        image = torch.randn(5, 36, 20, dtype=torch.complex64, generator=generator).cuda()
        with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
            tested = SenseOperator(maps, mask, implementation="cupy", workspace_bytes=workspace_bytes).normal(image)
            expected = SenseOperator(maps, mask, implementation="torch").normal(image)
            assert (tested - expected).norm() < 1e-5 * expected.norm()

    def test_memory_is_shared(self, cupy_kernels):
        cupy = importlib.import_module("cupy")
        tensor = torch.zeros(4, dtype=torch.complex64, device="cuda")
        assert cupy.asarray(tensor).data.ptr == tensor.data_ptr()
        assert np.dtype(cupy.asarray(tensor).dtype) == np.complex64
