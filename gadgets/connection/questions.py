"""Answers to the questions of peers."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.connection.resident import OWN_VERSION, UNKNOWN_QUERY
from gadgets.settings.pipelines import list_pipelines
from gadgets.wire.messages import Query, Response

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWERS: dict[str, Callable[[], str]] = {
    OWN_VERSION: lambda: __version__,
    "gadgetron::version": lambda: f"cinestream {__version__}",
    "gadgetron::info": lambda: f"cinestream {__version__}; pipelines: {', '.join(list_pipelines())}",
    "ismrmrd::version": lambda: metadata.version("ismrmrd"),
}


def answer(query: Query) -> Response:
    """Answer a question."""
    return Response(query.correlation, _ANSWERS.get(query.text, lambda: UNKNOWN_QUERY)())
