"""Measure what further rounds of ``kt_sense`` are worth, by sampling and noise: ``python -m tests.bench.rounds``.

PSNR in dB where the image moves / of the whole image, of simulated scans, after seven rounds and where it ends by
itself, and the ratio of the times.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from recon_core import reconstruct
from recon_core.metrics.measures import dynamic_region
from recon_core.simulate.kspace import SimulatedCine, simulate_cine

SAMPLINGS = {"every 4th line + 16": ("uniform", 4, 16), "shifting 4": ("interleaved", 4, 0)} | {
    f"random {acceleration}": ("variable_density", acceleration, 0) for acceleration in (4, 8)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| lines | SNR | 7 rounds | by default | time |")
    print("|---|---|---|---|---|")
    for name, (sampling, acceleration, acs) in SAMPLINGS.items():
        for snr in (30, 100, 400, 1000):
            scan = simulate_cine(
                frames=16,
                matrix=(96, 80),
                coils=8,
                sampling=sampling,
                acceleration=acceleration,
                acs_lines=acs,
                snr=snr,
            )
            _measured(scan, 7)  # warm
            (few, some_seconds), (many, all_seconds) = _measured(scan, 7), _measured(scan, 20)
            cells = (name, str(snr), few, many, f"{all_seconds / some_seconds:.1f}")
            print("|", " | ".join(cells), "|", flush=True)


def _measured(scan: SimulatedCine, rounds: int) -> tuple[str, float]:
    begin = time.perf_counter()
    result = reconstruct(scan.kspace, method="kt_sense", noise_covariance=scan.noise_covariance, kt_rounds=rounds)
    seconds = time.perf_counter() - begin
    truth, image = np.abs(scan.image), np.abs(result.image)
    error = (image * ((image * truth).sum() / np.square(image).sum()) - truth) ** 2
    moving = dynamic_region(truth)
    regions = error[:, moving], error
    return " / ".join(f"{10 * np.log10(truth.max() ** 2 / region.mean()):.1f}" for region in regions), seconds


if __name__ == "__main__":
    main()
