"""Trained weights: reading the authors' checkpoints without running code in them, keeping them, loading them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
import types
import typing
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from recon_core.errors import CinestreamError, ModelError, SettingsError
from recon_core.manifest import (
    MANIFEST,
    WeightsEntry,
    WeightsFacts,
    check_name,
    known_weights,
    read_manifest,
    user_folder,
    write_entry,
)
from recon_core.methods import METHODS
from recon_core.storage import replacing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from recon_core.networks.base import Network
    from recon_core.quality import TrainingRange

    Tensors = Mapping[str, torch.Tensor]
    Naming = Literal["own", "authors"]

# Where trainers keep the tensors of the network, the most telling name first.
_STATE_NAMES = ("state_dict", "model_state_dict", "model", "network", "net", "params", "module", "weights")
_TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_DEEPEST_NESTING = 4
_LONGEST_PREFIX = 8  # parts of a name
_SHOWN = 10  # names in a message

_REMEDY = """\
if you trust the file, save the bare tensors with the code that it belongs to, and import that:
    checkpoint = torch.load({name!r}, map_location="cpu", weights_only=False)
    torch.save(checkpoint["state_dict"], "bare.pth")  # or checkpoint.state_dict(), where it is a whole network"""


# --- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, kind: type[Network] | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint; code that lies in it is never run.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or one that ``torch.save`` wrote, under any other suffix. The tensors may be nested, as
        trainers nest them: under ``state_dict``, ``model``, and so on.
    kind
        Class of the network that they are for, which may know where its authors keep them.

    Returns
    -------
    dict
        Tensors by the names in the file.

    Raises
    ------
    ModelError
        If the file is not there, is damaged, or holds other things that only code could read.
    """
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}")
    document = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    chosen = kind.from_checkpoint(document) if kind is not None and isinstance(document, dict) else None
    tensors = _find_tensors(document, path) if chosen is None else chosen
    for key, tensor in tensors.items():
        # A few bytes can claim to be a tensor of any size, if all its elements are the same one.
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.dtype not in _TYPES
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ModelError(f"{key!r} in {path} is no plain tensor; {_REMEDY.format(name=path.name)}")
    return {key: tensor.detach().resolve_conj().resolve_neg() for key, tensor in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read {path} as safetensors: {_first_line(error)}") from error


def _read_pickle(path: Path) -> object:
    try:
        packed = _is_zip(path)
        # Mapped into memory, no tensor can reach beyond the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # a broken or forged pickle may raise anything
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise ModelError(
                f"{path} holds objects ({found[1]}) besides tensors; they are not read, because that would run code; "
                + _REMEDY.format(name=path.name)
            ) from error
        raise ModelError(
            f"cannot read {path} as a checkpoint (.safetensors, .pth, .pt or .ckpt): it is damaged, or none "
            f"({_first_line(error)}); {_REMEDY.format(name=path.name)}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}".rstrip(": ")


def _is_zip(path: Path) -> bool:
    """Whether a file has the format of torch 1.6 and later; refuses one that would grow when it is unpacked."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        with zipfile.ZipFile(file) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > file.seek(0, 2):
            raise ValueError("it is compressed, which torch.save never does")
    return True


def _find_tensors(document: object, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the network among whatever a trainer saved."""
    found: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    _collect(document, (), found)
    if not found:
        raise ModelError(f"{path} holds no tensors by name; {_REMEDY.format(name=path.name)}")
    most = max(map(len, found.values()))
    largest = [where for where, tensors in found.items() if len(tensors) == most]
    if len(largest) > 1:
        # Of several, such as the network and its running average, the one under a usual name.
        usual = [where for name in _STATE_NAMES for where in largest if where and where[-1] == name]
        if not usual:
            names = ", ".join(".".join(where) for where in largest[:_SHOWN])
            raise ModelError(f"{path} holds several sets of tensors ({names}); save the one to use alone")
        largest = usual
    return found[largest[0]]


def _collect(document: object, where: tuple[str, ...], found: dict[tuple[str, ...], dict[str, torch.Tensor]]) -> None:
    if not isinstance(document, dict):
        return
    named = {key: value for key, value in document.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
    if tensors:
        found[where] = tensors
    if len(where) < _DEEPEST_NESTING:
        for key, value in named.items():
            if not key.startswith("optim"):  # what the optimiser remembers has as many tensors
                _collect(value, (*where, key), found)


def content_digest(tensors: Tensors) -> str:
    """SHA-256 of names, shapes and values, the same in whatever file format they came.

    Parameters
    ----------
    tensors
        By the names in the checkpoint; floating-point ones count as float32.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        plain = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(json.dumps([key, list(tensor.shape)]).encode() + b"\n")
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


# --- matching ---------------------------------------------------------------------------------------------------------


class Misshapen(NamedTuple):
    """A tensor of another shape than the network's."""

    key: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} ({_shape(self.found)}, expected {_shape(self.expected)})"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


@dataclass(frozen=True)
class ImportReport:
    """How the tensors of a file fit a network.

    Parameters
    ----------
    naming
        Whose names the file has: the network's ``own`` ones or the ``authors``'; where they are the same, ``authors``.
    prefix
        What stood before every name; the names below are without it.
    matched
        Names that fit.
    missing
        Names of tensors of the network that the file lacks.
    unexpected
        Names that the network does not know.
    unused
        Names that the authors' networks carry along without use, and parts of a trainer beside the network.
    misshapen
        Tensors of another shape.
    unequal
        Names of one shared tensor for which the file has another value than for its first name.
    """

    naming: Naming
    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: tuple[str, ...]
    misshapen: tuple[Misshapen, ...]
    unequal: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the network has all it needs and nothing is left over."""
        return not (self.missing or self.unexpected or self.misshapen or self.unequal)

    def text(self) -> str:
        """Say it to people: counts, and some of the names."""
        names = "the authors' names" if self.naming == "authors" else "cinestream's own names"
        before = f", after the prefix {self.prefix!r}" if self.prefix else ""
        lines = [f"{len(self.matched)} tensors match, by {names}{before}"]
        for what, keys in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", tuple(map(str, self.misshapen))),
            ("unlike the tensor that they share", self.unequal),
            ("not used", self.unused),
        ):
            if keys:
                more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                lines.append(f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{more}")
        return "\n".join(lines)


def _tables(network: Network) -> dict[Naming, dict[str, torch.Tensor]]:
    """The tensors of a network by either kind of names; a shared one has several."""
    own = network.state_dict(keep_vars=True)
    return {"authors": {network.authors_key(key): tensor for key, tensor in own.items()}, "own": own}


def _find_prefix(wanted: Collection[str], keys: Iterable[str]) -> tuple[str, int]:
    """What stands before most of the names, and before how many of them."""
    votes: Counter[str] = Counter()
    for key in keys:
        rest = key
        for _ in range(_LONGEST_PREFIX):
            if rest in wanted:
                votes[key.removesuffix(rest)] += 1
            _, dot, rest = rest.partition(".")
            if not dot:
                break
    if not votes:
        return "", 0
    best = max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))
    rivals = [p for p in votes if votes[p] == votes[best] and not p.startswith(best)]
    if rivals and 2 * votes[best] >= len(wanted):
        names = ", ".join(repr(prefix) for prefix in (best, *rivals))
        raise ModelError(f"the checkpoint holds the network several times ({names}); save the one to use alone")
    return best, votes[best]


def match(network: Network, tensors: Tensors, *, naming: Naming | None = None) -> ImportReport:
    """Compare the tensors of a file with those of a network.

    Parameters
    ----------
    network
        The network; it is not changed.
    tensors
        By their names in the file.
    naming
        Whose names the file has; None finds out.

    Raises
    ------
    ModelError
        If the file holds the network more than once.
    """
    tables = _tables(network)
    prefixes = {kind: _find_prefix(table, tensors) for kind, table in tables.items()}

    def serves(kind: Naming) -> tuple[int, int]:
        prefix, known = prefixes[kind]
        return known, -len(prefix)

    named = max(prefixes, key=serves) if naming is None else naming
    table, prefix = tables[named], prefixes[named][0]
    misshapen: list[Misshapen] = []
    matched: list[str] = []
    unexpected: list[str] = []
    unused: list[str] = []
    unequal: list[str] = []
    present: dict[int, str] = {}  # the first name of every tensor, by the identity of the tensor
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        target = table.get(name)
        if not key.startswith(prefix):
            unused.append(key)
        elif target is None:
            (unused if re.fullmatch(network.unused_keys, name) else unexpected).append(name)
        elif target.shape != tensor.shape:
            misshapen.append(Misshapen(name, tuple(target.shape), tuple(tensor.shape)))
            present.setdefault(id(target), key)
        else:
            matched.append(name)
            first = tensors[present.setdefault(id(target), key)]
            if first is not tensor and not torch.equal(first, tensor):
                unequal.append(name)
    names = {id(target): name for name, target in reversed(table.items())}
    return ImportReport(
        naming=named,
        prefix=prefix,
        matched=tuple(matched),
        missing=tuple(name for target, name in reversed(names.items()) if target not in present),
        unexpected=tuple(unexpected),
        unused=tuple(unused),
        misshapen=tuple(misshapen),
        unequal=tuple(unequal),
    )


# --- loading ----------------------------------------------------------------------------------------------------------


def load_into(network: Network, tensors: Tensors, *, naming: Naming | None = None) -> ImportReport:
    """Copy the tensors of a file into a network; all of them or none.

    Parameters
    ----------
    network
        The network to fill.
    tensors
        By their names in the file; floating-point ones are taken as float32.
    naming
        Whose names the file has; None finds out.

    Raises
    ------
    ModelError
        If a tensor is missing, unknown, of another shape or not finite, or they belong to another variant of the
        network. The message has the report's text.
    """
    report = match(network, tensors, naming=naming)
    if report.missing or report.unexpected or report.misshapen:
        raise _misfit(network, report, tensors)
    table = _tables(network)[report.naming]
    values = {name: _value(name, tensors[report.prefix + name], table[name].dtype) for name in report.matched}
    infinite = [name for name, value in values.items() if not torch.isfinite(value).all()]
    if infinite:
        raise ModelError(
            f"{len(infinite)} tensors of the checkpoint have values that are not finite in float32: "
            f"{', '.join(infinite[:_SHOWN])}; its training has diverged, or the file is damaged"
        )
    if report.naming == "own":
        by_authors = {network.authors_key(name): value for name, value in values.items()}
    else:
        inside = [key for key in tensors if key.startswith(report.prefix)]
        by_authors = {key.removeprefix(report.prefix): tensors[key] for key in inside}
    network.check_checkpoint(by_authors)
    if report.unequal:  # after the network's own check, which may know what that means
        raise _misfit(network, report, tensors)
    with torch.no_grad():
        for name, value in values.items():
            table[name].copy_(value)
    return report


def _value(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.is_complex() != dtype.is_complex:
        raise ModelError(f"{name} of the checkpoint has the type {tensor.dtype}, expected {dtype}")
    return tensor.to(dtype)


def _misfit(network: Network, report: ImportReport, tensors: Tensors) -> ModelError:
    hint = _hint(network, report, tensors)
    return ModelError(f"the checkpoint does not fit {type(network).__name__}; {hint}\n{report.text()}")


def _hint(network: Network, report: ImportReport, tensors: Tensors) -> str:
    """The likely reason, for a person who does not read lists of names."""
    fields = ", ".join(field.name for field in dataclasses.fields(network.Config))
    known = len(report.matched) + len(report.misshapen)
    if known < len(report.unexpected):
        other = _resembling(type(network), tensors)
        return f"it looks like one of {other}" if other else "hardly any of its names is known"
    if report.misshapen:
        return f"its network has other sizes: give them with --config NAME=VALUE ({fields})"
    if report.unexpected:
        return f"its network has other parts, or more of them: give them with --config NAME=VALUE ({fields})"
    if report.unequal:
        return "what the network shares has several values there"
    return "it is not complete"


def _resembling(apart_from: type[Network], tensors: Tensors) -> str:
    """The method whose network has most of the names, if any has half of them."""
    best, most = "", len(tensors) / 2
    for method, info in METHODS.items():
        if not info.network:
            continue
        try:
            kind = _network_class(method)
            if kind is apart_from:
                continue
            with torch.device("meta"):  # names need no memory
                tables = _tables(kind(kind.Config()))
            known = max(_find_prefix(table, tensors)[1] for table in tables.values())
        except (CinestreamError, ImportError, RuntimeError):
            continue  # a hint is not worth another error
        if known > most:
            best, most = method, known
    return best


# --- networks by name -------------------------------------------------------------------------------------------------


def _network_class(method: str) -> type[Network]:
    info = METHODS.get(method)
    networks = ", ".join(name for name, other in METHODS.items() if other.network)
    if info is None:
        raise ModelError(f"there is no method {method!r}; those with networks are {networks}")
    if not info.network:
        raise ModelError(f"{method} has no network and needs no weights; those with networks are {networks}")
    module, _, name = info.network.partition(":")
    kind: type[Network] = getattr(importlib.import_module(module), name)
    return kind


def build_network(method: str, config: Mapping[str, object]) -> Network:
    """Build the network of a method, with the weights that it draws at random.

    Parameters
    ----------
    method
        Name of the method.
    config
        Fields of the network's ``Config``, with their values or as text: ``true``, ``64``, ``72,96,120``.

    Raises
    ------
    ModelError
        If there is no such method, it has no network, or the network refuses the values.
    SettingsError
        If a field is unknown or its value does not make a network.
    """
    return _build(method, parse_config(method, config))


def parse_config(method: str, config: Mapping[str, object]) -> Any:  # noqa: ANN401 - each network has a class for it
    """Make the ``Config`` of the network of a method; see `build_network`."""
    kind = _network_class(method).Config
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for name, value in config.items():
        if name not in names:
            raise SettingsError(f"the network of {method} has no field {name!r}; it has {', '.join(names)}")
        try:
            values[name] = _convert(hints[name], value)
        except (ValueError, OverflowError) as error:
            wanted = _describe(hints[name])
            raise SettingsError(f"field {name!r} of the network of {method} must be {wanted}, got {value!r}") from error
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the network of {method} cannot have {values}: {error}") from error


def _build(method: str, config: Any) -> Network:  # noqa: ANN401 - each network has a class for it
    try:
        return _network_class(method)(config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise SettingsError(f"the network of {method} cannot be built with {config}: {_first_line(error)}") from error


_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _describe(kind: Any) -> str:  # noqa: ANN401 - whatever annotates a field
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) is tuple:
        return f"numbers with commas between them ({kind})"
    return _PLAIN.get(kind, str(kind))


def _convert(kind: Any, value: object) -> object:  # noqa: ANN401 - whatever annotates a field
    """Turn a value of a manifest or the command line into the type of its field; ValueError where it is none."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    text = str(value).strip()
    if origin is tuple:
        parts = list(value) if isinstance(value, list | tuple) else text.strip("()[] ,").split(",")
        kinds = inner[:1] * len(parts) if inner[-1:] == (...,) else inner
        return tuple(_convert(each, part) for each, part in zip(kinds, parts, strict=True))
    if isinstance(value, list | tuple | dict):
        raise ValueError("one value is expected")
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() == "none":
            return None
        return _convert(next(each for each in inner if each is not type(None)), value)
    if origin is Literal or kind is bool:
        choices = _BOOLEANS if kind is bool else {str(choice): choice for choice in inner}
        if (text.lower() if kind is bool else text) not in choices:
            raise ValueError("no such choice")
        return choices[text.lower() if kind is bool else text]
    return kind(text) if kind in _PLAIN else value


# --- keeping ----------------------------------------------------------------------------------------------------------


def import_weights(
    method: str,
    path: Path,
    *,
    name: str = "",
    folder: Path | None = None,
    config: Mapping[str, object] = types.MappingProxyType({}),
    range: TrainingRange | None = None,  # noqa: A002 - the name that it has in the manifest
    input_peak: float | None = None,
    window: int | None = None,
    licence: str = "",
    source: str = "",
    notes: str = "",
) -> tuple[WeightsEntry, ImportReport]:
    """Bring a checkpoint to where `recon_core.manifest.find_weights` looks.

    Published checkpoints are known by their content, and bring what was found out about them along; the arguments win.

    Parameters
    ----------
    method
        The method whose network it is for.
    path
        The checkpoint, as for `read_checkpoint`.
    name
        Name of the weights; empty takes the method's.
    folder
        Where to put them; None is the user's own folder.
    config
        As for `build_network`.
    range, input_peak, window, licence, source, notes
        Facts as in `recon_core.manifest.WeightsFacts`.

    Returns
    -------
    tuple
        The new entry of the manifest, and how the tensors were matched.

    Raises
    ------
    ModelError
        If there is no such network, or the checkpoint cannot be read or does not fit it.
    SettingsError
        If the name or the configuration is not possible, or a file that is not in the manifest would be replaced.
    ResourceError
        If the files cannot be written.
    """
    name, folder = name or method, folder or user_folder()
    check_name(name)
    kind = _network_class(method)
    target = folder / f"{name}.safetensors"
    if target.exists() and target.name not in _files_of(folder):
        raise SettingsError(f"{target} exists and is not in {folder / MANIFEST}; move it away or choose another --name")
    tensors = read_checkpoint(path, kind)
    facts = known_weights(content_digest(tensors)) or WeightsFacts(method=method, source=f"imported from {path.name}")
    if facts.method != method:
        raise ModelError(f"{path} is known as weights of {facts.method}, not of {method}")
    settings = parse_config(method, {**facts.config, **config})
    network = _build(method, settings)
    try:
        report = load_into(network, tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    facts = dataclasses.replace(
        facts,
        config={key: _plain(value) for key, value in dataclasses.asdict(settings).items()},
        range=range or facts.range,
        input_peak=facts.input_peak if input_peak is None else input_peak,
        window=facts.window if window is None else window,
        licence=licence or facts.licence or (kind.licence_notice if report.naming == "authors" else ""),
        source=source or facts.source,
        notes=notes or facts.notes,
    )
    return write_weights(network, facts, name, folder), report


def write_weights(network: Network, facts: WeightsFacts, name: str, folder: Path) -> WeightsEntry:
    """Put the weights of a network into a folder and its manifest.

    Parameters
    ----------
    network
        The network; its configuration takes the place of that in `facts`.
    facts
        What is known of the weights.
    name
        Under which they will be listed.
    folder
        Made if it is not there; weights of that name are replaced.

    Raises
    ------
    SettingsError
        If the name is not possible, or a file that is not in the manifest would be replaced.
    ResourceError
        If the files cannot be written.
    """
    check_name(name)
    target = folder / f"{name}.safetensors"
    if target.exists() and target.name not in _files_of(folder):
        raise SettingsError(f"{target} exists and is not in {folder / MANIFEST}; move it away or choose another name")
    settings = {key: _plain(value) for key, value in dataclasses.asdict(network.config).items()}
    facts = dataclasses.replace(facts, config=settings)
    # One key, because those of several have no fixed order in the file, which is to be the same for the same weights.
    content = save(_own_tensors(network), {"cinestream": json.dumps({"method": facts.method, "config": settings})})
    entry = WeightsEntry(**vars(facts), name=name, file=target, sha256=hashlib.sha256(content).hexdigest())
    with replacing(target) as part:
        part.write_bytes(content)
    write_entry(folder, entry)
    return entry


def load_network(entry: WeightsEntry, device: torch.device | str) -> Network:
    """Build the network of trained weights, ready to reconstruct.

    Parameters
    ----------
    entry
        Of a manifest.
    device
        Where it is to compute.

    Raises
    ------
    ModelError
        If the file is not the one that the manifest describes, or does not fit the network.
    """
    try:
        content = entry.file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the weights {entry.name!r}, {entry.file}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ModelError(
            f"the weights {entry.name!r}, {entry.file}, are not those of the manifest: expected sha256 "
            f"{entry.sha256[:12]}..., found {found[:12]}...; the file is damaged or was replaced, so import it again"
        )
    try:
        network = build_network(entry.method, entry.config)
        load_into(network, load(content), naming="own")
    except (ModelError, SettingsError, SafetensorError) as error:
        raise ModelError(f"the weights {entry.name!r}, {entry.file}: {error}") from error
    return network.eval().requires_grad_(False).to(device)


def _files_of(folder: Path) -> set[str]:
    """Names of the files in a folder that its manifest speaks for."""
    path = folder / MANIFEST
    return {str(fields.get("file")) for fields in read_manifest(path).values() if isinstance(fields, dict)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _own_tensors(network: Network) -> dict[str, torch.Tensor]:
    """Every tensor of a network once, by its own first name."""
    own: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        own.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in own.values()}
