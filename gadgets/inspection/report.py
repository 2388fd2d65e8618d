"""The report on a raw file, for people and for machines."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recon_core.storage import write_file

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Fact:
    """One line of the report, for people (`text`) and for machines (`value`, fit for JSON)."""

    name: str
    text: str
    value: Any


@dataclass(frozen=True)
class Finding:
    """What looks wrong, and what to do; `damage` where a replay would lose data or images."""

    text: str
    damage: bool


@dataclass
class Inspection:
    """The report on a file."""

    source: str
    """Name of the file."""
    sections: dict[str, list[Fact]] = field(default_factory=dict)
    """Facts by title."""
    findings: list[Finding] = field(default_factory=list)
    """What looks wrong, the worst first."""

    @property
    def good(self) -> bool:
        """Replay would give all images that the scan promises, from undamaged data."""
        return not any(finding.damage for finding in self.findings)

    def text(self) -> str:
        """The report for people."""
        width = max((len(fact.name) for facts in self.sections.values() for fact in facts), default=0)
        lines = [self.source]
        for title, facts in self.sections.items():
            lines += ["", title]
            for fact in facts:
                first, *rest = fact.text.splitlines() or [""]
                lines.append(f"  {fact.name:{width}}  {first}")
                lines += [f"  {'':{width}}  {line}" for line in rest]
        lines += ["", "What looks wrong" if self.findings else "Nothing looks wrong"]
        lines += [f"  {'bad ' if finding.damage else 'note'}  {finding.text}" for finding in self.findings]
        return "\n".join(lines)

    def json(self) -> str:
        """The same for machines."""
        document = {
            "source": self.source,
            "good": self.good,
            **{title: {fact.name: fact.value for fact in facts} for title, facts in self.sections.items()},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
        return json.dumps(document, indent=1)

    def write_json(self, path: Path) -> None:
        """Write the report for machines.

        Raises
        ------
        ResourceError
            If the file cannot be written.
        """
        write_file(path, (self.json() + "\n").encode())
