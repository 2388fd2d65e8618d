"""What a bench found of a network on a scan, kept in a file, so that a run goes on where another was stopped."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from recon_core.inference.fusion import Evidence
from recon_core.training.survey import Finding
from recon_core.trust.weighing import Beyond

if TYPE_CHECKING:
    from pathlib import Path


def keep(finding: Finding, path: Path) -> None:
    """Write a finding."""
    fields = dataclasses.asdict(finding)
    torch.save(fields | {"evidence": tuple(finding.evidence), "beyond": tuple(finding.beyond)}, path)


def read(path: Path) -> Finding:
    """Read a finding."""
    fields = torch.load(path, weights_only=True)
    return Finding(**{**fields, "evidence": Evidence(*fields["evidence"]), "beyond": Beyond(*fields["beyond"])})
