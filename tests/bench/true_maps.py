"""Measure what the true coil maps would gain: ``python -m tests.bench.true_maps DATA [METHOD]``.

DATA is the folder with ``scd_cine`` and ``semi_real_cine``. Every scan of the suite is reconstructed with the maps that
are estimated (``maps=auto``), and with the true ones. The figures are PSNR in dB, where it moves / whole, with what the
true maps gain, and the medians of each part at the end.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gadgets.evaluation.held_out import held_out_scans
from gadgets.evaluation.suite import semi_real_scans
from recon_core.coils.vectors import normalise
from recon_core.engine import Engine
from recon_core.metrics.scores import measure, scaled
from recon_core.options import ReconOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.data import CineSlice

MEASURES = ("dynamic_psnr", "psnr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("method", nargs="?", default="kt_sense")
    options = parser.parse_args()
    engine, chosen = Engine(), ReconOptions.of(method=options.method)
    parts: dict[str, list[list[float]]] = defaultdict(list)
    for scan in [*held_out_scans(options.data), *semi_real_scans(options.data / "semi_real_cine")]:
        loaded = scan.load()
        for condition in scan.conditions:

            def score(slices: list[CineSlice], truth: NDArray[np.complex64] = loaded.truth) -> list[float]:
                images = [np.abs(engine.reconstruct(one, chosen).image) for one in slices]
                scores = measure(scaled(images, truth), list(truth))
                return [scores[name] for name in MEASURES]

            slices = loaded.measured(condition)
            auto = score(slices)
            true = score(
                [replace(one, maps=whitened(maps, one)) for one, maps in zip(slices, loaded.maps, strict=True)]
            )
            parts[scan.part].append([*auto, *true])
            print(f"{scan.part:10} {scan.name:28} {condition:14} {told(*auto, *true)}", flush=True)
    for part, figures in parts.items():
        table = np.array(figures)
        gained = table[:, 2:] - table[:, :2]
        beyond = int((gained > 0.5).any(1).sum())
        print(f"{part}: {told(*np.median(table, 0))} (medians); of {len(table)} series {beyond} gain more than 0.5 dB")


def whitened(maps: NDArray[np.complex64], one: CineSlice) -> NDArray[np.complex64]:
    """True maps ``(coil, y, x)`` as the coils of a slice have them, of unit norm."""
    seen = np.einsum("vc,cyx->vyx", np.linalg.inv(one.receiver.colouring), maps).astype(np.complex64)
    return normalise(torch.from_numpy(seen))[0].numpy()


def told(moving: float, whole: float, true_moving: float, true_whole: float) -> str:
    """Scores with estimated maps and with true ones."""
    gained = f"{true_moving - moving:+.2f} / {true_whole - whole:+.2f}"
    return f"{moving:5.2f} / {whole:5.2f}   true maps {true_moving:5.2f} / {true_whole:5.2f}   {gained}"


if __name__ == "__main__":
    main()
