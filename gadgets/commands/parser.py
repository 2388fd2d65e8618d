"""A parser that says what a mistyped command, option or choice may have been meant for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from recon_core.words import meant

if TYPE_CHECKING:
    from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with suggestions; unknown options are reported with the usage of their command."""

    def parse_known_args(  # type: ignore[override] # the overloads of the stubs, without a namespace of another type
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and end with status 2 where something is left over."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            options = [one for one in left if one.startswith("-")]
            question = meant(options[0].partition("=")[0], self._option_string_actions) if options else ""
            self.error("; ".join(filter(None, (f"unrecognized arguments: {' '.join(left)}", question))))
        return found, left

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - as argparse has it
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            question = meant(value, map(str, action.choices or ()))
            raise argparse.ArgumentError(action, "; ".join(filter(None, (error.message, question)))) from error
