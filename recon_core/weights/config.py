"""The configuration of a network as it stands in a manifest, and the network that it makes."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any, Literal

from recon_core.errors import ModelError, SettingsError
from recon_core.methods import find_method, load_target, method_names, network_names
from recon_core.values import Allowed
from recon_core.weights.checkpoint import first_line
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from recon_core.networks.base import Network

    Tensors = Mapping[str, torch.Tensor]
    Naming = Literal["own", "authors"]


def network_class(method: str) -> type[Network]:
    """Import the class of the network of a method.

    Raises
    ------
    ModelError
        If the method is unknown or has no network.
    """
    if method not in network_names():
        known = method in method_names()
        what = f"{method} has no network and needs no weights" if known else f"there is no method {method!r}"
        raise ModelError(f"{what}; of those with networks {choose_from(method, network_names())}")
    kind: type[Network] = load_target(find_method(method).network)
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
    return instantiate(method, parse_config(method, config))


def parse_config(method: str, config: Mapping[str, object]) -> Any:  # noqa: ANN401 - each network has a class for it
    """Make the ``Config`` of the network of a method; see `build_network`."""
    kind = network_class(method).Config
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for name, value in config.items():
        if name not in names:
            raise SettingsError(f"the network of {method} has no field {name!r}; {choose_from(name, names)}")
        values[name] = Allowed(hints[name], finite=False).read(f"field {name!r} of the network of {method}", value)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the network of {method} cannot have {values}: {error}") from error


def instantiate(method: str, config: Any) -> Network:  # noqa: ANN401 - each network has a class for it
    """Build the network of a method from a configuration of its own class.

    Raises
    ------
    SettingsError
        If the network cannot be built so.
    """
    try:
        return network_class(method)(config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise SettingsError(f"the network of {method} cannot be built with {config}: {first_line(error)}") from error
