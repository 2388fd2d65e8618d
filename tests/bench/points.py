"""Measure methods on masks of points, as pseudo-radial ones on the grid are: ``python -m tests.bench.points``."""

from __future__ import annotations

import numpy as np

from recon_core.api import reconstruct
from recon_core.simulate.kspace import simulate_cine
from recon_core.simulate.sampling import pseudo_radial_mask

SIZE, COILS, FRAMES, SPOKES = 96, 6, 12, 14
METHODS = ("zero_filled", "cg_sense", "low_rank_sparse", "kt_sense", "cinenet")


def main() -> None:
    scan = simulate_cine(frames=FRAMES, matrix=(SIZE, SIZE), coils=COILS, sampling="full")
    turning = pseudo_radial_mask(FRAMES, SIZE, SIZE, SPOKES)
    for name, mask in (("turning", turning), ("the same in every frame", turning[:1])):
        print(f"{SIZE} x {SIZE}, {COILS} coils, {FRAMES} frames, {100 * mask.mean():.1f} % of k-space, {name}")
        for method in METHODS:
            result = reconstruct(
                scan.kspace, method, mask=mask, noise_covariance=scan.noise_covariance, fallback="none"
            )
            image, truth = np.abs(result.image), np.abs(scan.image)
            scale = (image * truth).sum() / np.square(image).sum()
            print(
                f"  {method:20s} NRMSE {np.linalg.norm(scale * image - truth) / np.linalg.norm(truth):.3f}", flush=True
            )


if __name__ == "__main__":
    main()
