"""Measure what is sent of networks, on drawn scans that training has not seen, and find anew how far they are believed.

    python -m tests.bench.sent FOLDER [NETWORK ...] [--scans 300] [--first N] [--data DIR]
    python -m tests.bench.sent FOLDER [NETWORK ...] --weigh [--scans 720] [--data DIR]

The packaged weights are compared with ``kt_sense``. By default the scans are those that follow the ones of their
survey, and the packaged weighing is judged. With ``--weigh`` they are those of the survey, and more; each quarter is
judged by the weighing that is found on the other three, and what is found on all is printed as the manifest has it.
What is found of every scan goes to FOLDER/NETWORK at once, and a run goes on where another was stopped. An image is
sent where the network counts enough; a scan would gain where the network by itself is better by more than 0.2 dB,
whole and where it moves. A fifth of the scans have points instead of lines, if the network takes them.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from recon_core.training.library import Library, read_library
from recon_core.training.plan import preset_plan
from recon_core.training.survey import Finding, Gain, gains, summarise, survey, weigh
from recon_core.trust.weighing import LEAST_SHARE
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import WeightsEntry, list_weights
from tests.bench.findings import keep, read

WORSE = 0.2  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=["crunet_mr"])
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--first", type=int)
    parser.add_argument("--weigh", action="store_true")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    library = Library() if options.data is None else read_library(options.data, "held out")
    weighed = {entry.method: entry for entry in list_weights().values() if entry.weighing}
    print("| network | scans | sent | median, moves / whole | least of either | worse | would gain | of these sent |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        entry = weighed[name]
        surveyed = int(entry.metrics["survey"]["scans"])
        first = options.first if options.first is not None else 0 if options.weigh else surveyed
        findings = look(entry, library, range(first, first + options.scans), options.folder / name)
        found = weigh(findings) if options.weigh else None
        judged = found.judged if found else gains(findings, entry.weighing)
        print(row(f"`{name}`", judged, findings), flush=True)
        for kind in sorted({finding.kind for finding in findings} - {""}):
            of_kind = [number for number, finding in enumerate(findings) if finding.kind == kind]
            chosen = [judged[number] for number in of_kind], [findings[number] for number in of_kind]
            print(row(f"`{name}`, {kind}", *chosen), flush=True)
        if found is None:
            continue
        facts = {
            "weighing": found.weighing.mapping(),
            "helps_on_points": found.helps_on_points,
            "survey": summarise(found.judged),
        }
        print(yaml.safe_dump({name: facts}, sort_keys=False), flush=True)


def look(entry: WeightsEntry, library: Library, numbers: range, folder: Path) -> list[Finding]:
    """Findings of these scans, from the folder where they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(entry, "cpu")
    plan = dataclasses.replace(preset_plan(entry.method), survey=1, start=entry.start)
    for number in tqdm(numbers, desc=entry.method):
        path = folder / f"{number:06d}.pt"
        if not path.exists():
            (finding,) = survey(network, plan, library, number)
            keep(finding, path)
    return [read(folder / f"{number:06d}.pt") for number in numbers]


def alone(finding: Finding) -> float:
    """What the network is better by itself, in dB: the lesser of whole, and where it moves."""
    left = finding.error - 2 * finding.agreement + finding.change
    regions = torch.ones_like(finding.moving), finding.moving
    return min(-10 * float(torch.log10(left[region].sum() / finding.error[region].sum())) for region in regions)


def row(name: str, judged: list[Gain], findings: list[Finding]) -> str:
    """A row of the table."""
    whole, moving, share = np.array(judged).T
    sent, gaining = share >= LEAST_SHARE, np.array([alone(finding) for finding in findings]) > WORSE
    least = np.minimum(whole, moving)[sent]
    if not len(least):
        return f"| {name} | {len(findings)} | 0 | | | | {np.count_nonzero(gaining)} | 0 |"
    medians = " / ".join(f"{np.median(values[sent]):+.2f}" for values in (moving, whole))
    worse = f"{100 * np.mean(least < -WORSE):.1f} %"
    served = f"{np.count_nonzero(sent & gaining)} of {np.count_nonzero(gaining)}"
    return (
        f"| {name} | {len(findings)} | {np.count_nonzero(sent)} | {medians} dB | {least.min():+.2f} dB | {worse} "
        f"| {np.count_nonzero(gaining)} | {served} |"
    )


if __name__ == "__main__":
    main()
