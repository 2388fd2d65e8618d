"""Methods of one's own: found by name among installed packages and in folders of the operator, and made known.

A process knows the methods of cinestream, and those of one's own that were registered or allowed in it. A name that
comes from the other end of a connection is looked up among these, and nothing else is imported for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import logging
import os
import re
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_core.errors import CinestreamError, ModelError, SettingsError
from recon_core.methods import METHODS, OWN_METHODS, MethodInfo, find_method, load_target, method_names
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from recon_core.data import HybridSlice
    from recon_core.options import ReconOptions

logger = logging.getLogger("cinestream")

#: Group of entry points of installed packages.
GROUP = "cinestream.methods"
#: Folders with a Python file for each method, separated as in PATH.
FOLDERS = "CINESTREAM_METHODS"
#: Names that a server may be asked for, with commas in between.
ALLOWED = "CINESTREAM_ALLOW_METHODS"
#: What a file calls its method.
ATTRIBUTE = "METHOD"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_FORMS = (
    "a class that is built from the options and called with a HybridSlice, a function of a HybridSlice, a class of a "
    "Network, an nn.Module from image to image, or a MethodInfo"
)
_lock = threading.RLock()  # two threads must not import one file at a time


def register_method(name: str, method: object, **traits: Any) -> None:  # noqa: ANN401 - of several types
    """Make a method known in this process, or replace one that was registered.

    Parameters
    ----------
    name
        Under which it can be chosen from then on.
    method
        A class that is built from its options and called with a `recon_core.data.HybridSlice`; a function of a
        `HybridSlice`; a subclass of `recon_core.networks.base.Network`, which has weights; an ``nn.Module`` from image
        to image, as `recon_core.inference.plain_module` runs it; or a `recon_core.methods.MethodInfo`. What is called
        with a slice gives the image ``(frame, y, x)`` complex64. The options are those of the class ``Options`` that a
        class may have, derived from `recon_core.options.Options`; without it all `recon_core.options.ReconOptions`.
    **traits
        Fields of `recon_core.methods.MethodInfo`, such as ``summary`` or ``framewise``.

    Raises
    ------
    SettingsError
        If the name is that of a method of cinestream or not possible, or there is no such trait.
    ModelError
        If the method has none of these forms.

    Examples
    --------
    A method that gives every frame the image of the time average:

    >>> from recon_core import reconstruct, register_method
    >>> from recon_core.physics.fourier import ifft
    >>> from recon_core.simulate.kspace import simulate_cine
    >>> def time_average(data):
    ...     images = ifft(data.reference, (-2,))
    ...     return (data.maps.conj() * images).sum(0).expand(len(data.hybrid), -1, -1)
    >>> register_method("time_average", time_average)
    >>> result = reconstruct(simulate_cine(frames=8, matrix=(64, 72), coils=4).kspace, "time_average")
    >>> result.image.shape, result.method
    ((8, 64, 72), 'time_average')
    """
    _check_name(name)
    info = _info(name, method, "register_method")
    known = [field.name for field in dataclasses.fields(MethodInfo)]
    unknown = set(traits) - set(known)
    if unknown:
        raise SettingsError(f"a method has no trait {min(unknown)!r}; {choose_from(min(unknown), known)}")
    info = dataclasses.replace(info, **traits)
    OWN_METHODS[name] = lambda: info


def allow_methods(names: Iterable[str] | None = None) -> None:
    """Make methods of one's own known by name, to be imported when they are first used.

    Files ``NAME.py`` in the folders of the environment variable ``CINESTREAM_METHODS`` come before entry points of the
    group ``cinestream.methods``; the first of a name counts.

    Parameters
    ----------
    names
        Which; None is all that there are.

    Raises
    ------
    SettingsError
        If there is no such method.
    """
    sources = _sources()
    for name in sources if names is None else names:
        if name in METHODS or (name in OWN_METHODS and name not in sources):
            continue
        if name not in sources:
            raise SettingsError(
                f"there is no method {name!r}; {choose_from(name, (*METHODS, *sources))}. Your own are looked for "
                f"in packages (entry points {GROUP}) and in the folders of {FOLDERS} "
                f"({os.environ.get(FOLDERS) or 'not set'})"
            )
        OWN_METHODS[name] = sources[name][1]


def load_method(name: str) -> Any:  # noqa: ANN401 - a class or a function
    """Import a method: the class of its network, or else what builds it from the options.

    Raises
    ------
    SettingsError
        If there is no such method.
    ModelError
        If it cannot be imported.
    """
    if name not in method_names():
        allow_methods([name])
    info = find_method(name)
    return load_target(info.target.method if isinstance(info.target, _Builder) else info.network or info.target)


def allowed_by_operator() -> list[str]:
    """Names in the environment variable ``CINESTREAM_ALLOW_METHODS``."""
    return [name.strip() for name in os.environ.get(ALLOWED, "").split(",") if name.strip()]


def _sources() -> dict[str, tuple[str, Callable[[], MethodInfo]]]:
    """Where each method is, and what imports it."""
    found: dict[str, tuple[str, Callable[[], MethodInfo]]] = {}
    for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        for path in sorted(Path(folder).glob("*.py")):
            if _NAME.fullmatch(path.stem) and path.is_file():
                found.setdefault(path.stem, (str(path), functools.partial(_from_file, path)))
    for entry in metadata.entry_points(group=GROUP):
        if _NAME.fullmatch(entry.name):
            found.setdefault(entry.name, (f"package {entry.value}", functools.partial(_from_entry, entry)))
    for name in found.keys() & METHODS.keys():
        logger.warning("%s is not used: %s is a method of cinestream, choose another name", found.pop(name)[0], name)
    return found


@functools.cache
def _from_file(path: Path) -> MethodInfo:
    module_name = f"cinestream_method_{path.stem}"
    with _lock:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ModelError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ModelError(f"the method in {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, ATTRIBUTE):
        raise ModelError(f"{path} has no {ATTRIBUTE}; it must be {_FORMS}")
    return _info(path.stem, getattr(module, ATTRIBUTE), str(path))


@functools.cache
def _from_entry(entry: metadata.EntryPoint) -> MethodInfo:
    try:
        with _lock:
            method = entry.load()
    except Exception as error:
        text = f"the method {entry.name} of package {entry.value} cannot be imported: {type(error).__name__}: {error}"
        raise ModelError(text) from error
    return _info(entry.name, method, f"package {entry.value}")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"the name of a method has letters, digits and _ only, 100 at most; got {name[:120]!r}")
    if name in METHODS:
        raise SettingsError(f"{name} is a method of cinestream; choose another name")


def _info(name: str, method: object, where: str) -> MethodInfo:
    """The traits of a method in any of its forms."""
    if isinstance(method, MethodInfo):
        return method if method.network else dataclasses.replace(method, target=_Builder(name, method.target))
    kind: type = method if isinstance(method, type) else type(method)
    network: Any = method if _has_base(kind, "recon_core.networks.base", "Network") else ""
    module = _has_base(kind, "torch.nn.modules.module", "Module") and not network
    target: Any = None
    hint = ""
    if isinstance(network, type):
        target = "recon_core.inference.method:NetworkMethod"
    elif module and not isinstance(method, type):
        target = _Builder(name, functools.partial(_run_module, method))
    elif network or module:
        hint = "; give a class derived from recon_core.networks.base.ImageNetwork, or an object of a plain nn.Module"
    elif callable(method) and (not isinstance(method, type) or any("__call__" in vars(base) for base in kind.__mro__)):
        target = _Builder(name, method)
    if target is None:
        got = " ".join(repr(method).split())[:80]
        raise ModelError(f"the method {name} ({where}) must be {_FORMS}; got {got}{hint}")
    options = getattr(method, "Options", None)
    summary = (inspect.getdoc(method) or f"of {where}").partition("\n\n")[0].replace("\n", " ").rstrip(".")
    return MethodInfo(
        target=target,
        label=name,
        summary=summary,
        reference="",
        network=network,
        options=options if isinstance(options, type) and _has_base(options, "recon_core.options", "Options") else None,
    )


def _run_module(module: Any, data: HybridSlice) -> torch.Tensor:  # noqa: ANN401 - torch is not imported for names
    from recon_core.inference.plain_module import run_plain_module

    return run_plain_module(module, data)


def _has_base(kind: type, module: str, name: str) -> bool:
    """Whether a class derives from another, seen without importing that one."""
    return any((base.__module__, base.__qualname__) == (module, name) for base in kind.__mro__)


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds a method that is no network."""

    name: str
    """Of the method."""
    method: Any
    """A class or, as `MethodInfo.target` has it, a name of what builds it from the options; or a function of a
    slice."""

    def __call__(self, options: ReconOptions) -> Callable[[HybridSlice], torch.Tensor]:
        takes_options = isinstance(self.method, type | str)
        built: Callable[[HybridSlice], torch.Tensor]
        built = load_target(self.method)(options) if takes_options else self.method
        return built


@contextlib.contextmanager
def guarded(name: str, *others: type[Exception]) -> Iterator[None]:
    """Make whatever goes wrong in a method of one's own an error that the fallback takes over from.

    Parameters
    ----------
    name
        Of the method. Of one of cinestream everything passes: what nobody foresaw is not to be hidden.
    others
        Errors that somebody else sees to.

    Raises
    ------
    ModelError
        For every error that is neither of cinestream nor one of these.
    """
    try:
        yield
    except Exception as error:
        if name in METHODS or isinstance(error, (CinestreamError, *others)):
            raise
        logger.debug("%s failed", name, exc_info=True)
        raise ModelError(f"{name} failed: {type(error).__name__}: {error}") from error


def checked_image(name: str, image: torch.Tensor, data: HybridSlice) -> torch.Tensor:
    """Hand on what a method made of a slice, on the device of the slice.

    Raises
    ------
    ModelError
        If a method of one's own made anything else than an image of the slice.
    """
    wanted = (len(data.hybrid), *data.maps.shape[-2:])
    if name not in METHODS and (getattr(image, "dtype", None) != data.hybrid.dtype or image.shape != wanted):
        found = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
        raise ModelError(f"{name} must give a tensor (frame, y, x) = {wanted} {data.hybrid.dtype}, got {found}")
    return image.to(data.hybrid.device)
