"""Measure what is sent of networks, on drawn scans that neither training nor weighing has seen.

    python -m tests.bench.sent FOLDER [NETWORK ...] [--scans 300] [--data DIR]

The packaged weights and their weighing are judged against ``kt_sense`` on the scans that follow those of their survey.
What is found of every scan goes to FOLDER/NETWORK.jsonl at once, and a run goes on where another was stopped. An image
is sent where the network counts enough; a scan would gain where the network by itself is better by more than 0.2 dB,
whole and where it moves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recon_core.training.library import Library, read_library
from recon_core.training.plan import preset_plan
from recon_core.training.survey import Finding, gains, survey
from recon_core.trust.weighing import LEAST_SHARE
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import WeightsEntry, list_weights

WORSE = 0.2  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=["crunet_mr"])
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    library = Library() if options.data is None else read_library(options.data, "held out")
    options.folder.mkdir(parents=True, exist_ok=True)
    weighed = {entry.method: entry for entry in list_weights().values() if entry.weighing}
    print("| network | scans | sent | median, moves / whole | least of either | worse | would gain | of these sent |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        print(row(name, look(weighed[name], library, options.scans, options.folder / f"{name}.jsonl")), flush=True)


def look(entry: WeightsEntry, library: Library, scans: int, path: Path) -> np.ndarray:
    """Gains ``(scan, 5)``: whole and moving as sent, the share, whole and moving of the network by itself."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    plan = preset_plan(entry.method)
    begin = plan.survey + len(found)
    network = load_network(entry, "cpu")
    later = survey(network, dataclasses.replace(plan, survey=max(0, scans - len(found))), library, begin)
    with path.open("a") as file:
        for finding in tqdm(later, total=scans - len(found), desc=entry.method):
            (gain,) = gains([finding], entry.weighing)
            found.append([gain.whole, gain.moving, gain.share, *alone(finding)])
            file.write(f"{json.dumps(found[-1])}\n")
            file.flush()
    return np.array(found[:scans])


def alone(finding: Finding) -> tuple[float, float]:
    """What the network is better by itself, in dB: whole, and where it moves."""
    left = finding.error - 2 * finding.agreement + finding.change
    regions = torch.ones_like(finding.moving), finding.moving
    return tuple(-10 * float(torch.log10(left[region].sum() / finding.error[region].sum())) for region in regions)


def row(name: str, found: np.ndarray) -> str:
    """A row of the table."""
    whole, moving, share, *own = found.T
    sent, gaining = share >= LEAST_SHARE, np.minimum(*own) > WORSE
    least = np.minimum(whole, moving)[sent]
    medians = " / ".join(f"{np.median(values[sent]):+.2f}" for values in (moving, whole))
    worse = f"{100 * np.mean(least < -WORSE):.1f} %"
    served = f"{np.count_nonzero(sent & gaining)} of {np.count_nonzero(gaining)}"
    return (
        f"| `{name}` | {len(found)} | {np.count_nonzero(sent)} | {medians} dB | {least.min():+.2f} dB | {worse} "
        f"| {np.count_nonzero(gaining)} | {served} |"
    )


if __name__ == "__main__":
    main()
