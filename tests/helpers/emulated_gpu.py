"""A GPU that the CPU plays: tensors that say that they are on ``cuda``, and compute on the CPU.

Like a GPU it refuses operations on tensors of two devices, and it counts what makes the host wait for the device. It
has no kernels of its own and no streams; values are those of the CPU. It is seen by the thread that entered it only.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.paths import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCES = REPOSITORY / "recon_core"
DEVICE = torch.device("cuda", 0)
#: Calls that give the host a value of a tensor.
_READING = {
    "item",
    "equal",
    "is_nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__contains__",
}
#: Operations, by their name without overload, of which the host must know the size of the result.
_SIZING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_SELECTING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class EmulatedTensor(torch.Tensor):
    """A tensor on the emulated GPU; `held` has its values."""

    held: torch.Tensor
    device = DEVICE
    is_cuda = True
    is_cpu = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> EmulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    def __init__(self, held: torch.Tensor) -> None:
        """The values are there already."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None) -> Any:
        raise RuntimeError(f"{function} on a tensor of the emulated GPU, outside of it")

    def __repr__(self) -> str:
        return f"EmulatedTensor({tuple(self.shape)}, {self.dtype})"


class EmulatedGPU:
    """Emulates a GPU within a with statement.

    Parameters
    ----------
    free_bytes
        Memory that it says is free.

    Attributes
    ----------
    waits
        How often the host waited: for a ``value``, the ``size`` of a result, a ``download``, an ``upload``, or for
        all work (``synchronize``).
    places
        The same, by the line of the sources that caused it.
    """

    def __init__(self, free_bytes: int = 64 << 30) -> None:
        self.free_bytes = free_bytes
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> EmulatedGPU:
        autocast = torch.autocast

        def on_cpu(device: str, *args, **more):
            return autocast("cpu" if device == "cuda" else device, *args, **more)

        replaced = {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.synchronize": lambda _=None: self.waited("synchronize"),
            "torch.cuda.mem_get_info": lambda _=None: (self.free_bytes, self.free_bytes),
            "torch.cuda.get_per_process_memory_fraction": lambda _=None: 1.0,
            "torch.cuda.memory_reserved": lambda _=None: 0,
            "torch.cuda.memory_allocated": lambda _=None: 0,
            "torch.cuda.get_device_capability": lambda _=None: (9, 0),
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.current_stream": lambda _=None: SimpleNamespace(cuda_stream=0),
            "torch.autocast": on_cpu,
            "torch._has_compatible_shallow_copy_type": lambda *_: False,  # a module takes the moved parameters
        }
        for name, function in replaced.items():
            self._entered.enter_context(patch(name, function, create=True))
        self._entered.enter_context(_Calls(self))
        self._entered.enter_context(_Operations(self))
        return self

    def __exit__(self, *error) -> None:
        self._entered.close()

    def waited(self, kind: str) -> None:
        """Count that the host waited."""
        self.waits[kind] += 1
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(_SOURCES):
                self.places[f"{kind} at {path.relative_to(_SOURCES)}:{frame.f_lineno}"] += 1
                break
            frame = frame.f_back


class _Calls(TorchFunctionMode):
    """Copies between the devices, and tensors made on one, as Python asks for them."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "cpu":
            return self._moved(args[0], torch.device("cpu"))
        if name in {"tolist", "numpy"} and isinstance(args[0], EmulatedTensor):
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return getattr(self._moved(args[0], torch.device("cpu")), name)()
        if name in _READING and isinstance(args[0], EmulatedTensor):
            self._gpu.waited("value")
        if name == "to":
            args, kwargs, target = _parsed(args, kwargs)
            made = self._moved(args[0], target)
            return function(made, *args[1:], **kwargs) if len(args) > 1 or kwargs else made
        if name == "new_tensor":
            kwargs.setdefault("device", args[0].device)
        target = kwargs.get("device")
        if target is None:
            return function(*args, **kwargs)
        kwargs["device"] = torch.device("cpu")
        made = function(*args, **kwargs)
        if torch.device(target).type == "cuda":
            return made if isinstance(made, EmulatedTensor) else EmulatedTensor(made)
        return made

    def _moved(self, tensor: torch.Tensor, target: torch.device | None) -> torch.Tensor:
        """The tensor on a device; the same one where it is there."""
        if target is None or (target.type == "cuda") == isinstance(tensor, EmulatedTensor):
            return tensor
        if target.type == "cuda":
            self._gpu.waited("upload")
            return EmulatedTensor(tensor.detach().clone())
        self._gpu.waited("download")
        return tensor.held.clone()


def _parsed(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], torch.device | None]:
    """The device that ``Tensor.to`` is asked for, and its other arguments."""
    target = kwargs.pop("device", None)
    kwargs.pop("non_blocking", None)
    others = []
    for one in args[1:]:
        if isinstance(one, (str, torch.device)):
            target = one
        elif isinstance(one, torch.Tensor):
            target = one.device
            others.append(one.dtype)
        elif one is not None and not isinstance(one, bool):
            others.append(one)
    if target is not None:
        target = torch.device(target)
    return (args[0], *others), {key: value for key, value in kwargs.items() if value is not None}, target


class _Operations(TorchDispatchMode):
    """Every operation: where its tensors must be, whether it waits, and its result."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = list(_tensors((*args, *kwargs.values())))
        there = [one for one in given if isinstance(one, EmulatedTensor)]
        if there:
            self._check(function, name, given)
        result = function(*map(_held, args), **{key: _held(value) for key, value in kwargs.items()})
        here = isinstance(args[0], EmulatedTensor) if name == "copy_" else bool(there)
        return _wrapped(result, there) if here else result

    def _check(self, function, name: str, given: list[torch.Tensor]) -> None:
        """Refuse tensors of two devices, and count what waits."""
        strangers = [one for one in given if not isinstance(one, EmulatedTensor)]
        if name in _SIZING or (name in _SELECTING and any(one.dtype == torch.bool for one in given[1:])):
            self._gpu.waited("size")
        if not strangers:
            return
        if name == "copy_" or name in _SELECTING:  # a GPU takes the indices of the host, after a copy
            self._gpu.waited("upload" if isinstance(given[0], EmulatedTensor) else "download")
        elif any(one.ndim for one in strangers):
            raise RuntimeError(f"{function}: expected all tensors to be on the same device, got cuda:0 and cpu")


def _tensors(values) -> Iterator[torch.Tensor]:
    """The tensors among arguments; lists of them are arguments too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _held(value):
    """An argument for the CPU."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, EmulatedTensor) else value


def _wrapped(result, given: list[EmulatedTensor]):
    """A result on the GPU: the tensor itself where it was written in place."""
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(one, given) for one in result)
    if not isinstance(result, torch.Tensor):
        return result
    for one in given:
        if one.held is result:
            return one
    return EmulatedTensor(result.resolve_conj().resolve_neg())
