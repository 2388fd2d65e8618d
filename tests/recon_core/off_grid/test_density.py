import numpy as np
import pytest

from recon_core import reconstruct
from recon_core.simulate.coils import coil_maps
from recon_core.simulate.phantom import beating_thorax

pytest.importorskip("finufft", reason="no wheel of finufft for this platform")

from recon_core.off_grid.density import iterated_areas
from recon_core.off_grid.trajectory import cell_areas, spoke_positions
from recon_core.simulate.radial import measure

SIZE = 48


def spiral(arms=12, samples=400, turns=2.5):
    """Archimedean arms with even angular speed: the density weight of a sample goes with its radius."""
    part = (np.arange(samples) + 0.5) / samples
    radius = 0.5 * part
    angle = 2 * np.pi * (turns * part + np.arange(arms)[:, None] / arms)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).astype(np.float32)


def test_weights_of_a_spiral_go_with_the_radius():
    positions = spiral()
    found = iterated_areas(positions, (SIZE, SIZE))
    radius = np.linalg.norm(positions, axis=-1)
    inner = (radius > 0.05) & (radius < 0.42)
    ratio = found[inner] / radius[inner]
    assert ratio.std() / ratio.mean() < 0.05
    # the area between two circles
    area = np.pi * (0.42**2 - 0.05**2) * SIZE**2
    assert found[inner].sum() == pytest.approx(area, rel=0.05)


def test_weights_of_spokes_are_their_cells():
    angles = np.pi / 80 * np.arange(80)
    positions = spoke_positions(angles, 2 * SIZE, SIZE, (SIZE, SIZE))
    found, cells = iterated_areas(positions, (SIZE, SIZE)), cell_areas(positions, (SIZE, SIZE))
    radius = np.linalg.norm(positions, axis=-1)
    inner = (radius > 0.06) & (radius < 0.42)
    assert np.median(np.abs(found[inner] / cells[inner] - 1)) < 0.05


def test_a_spiral_without_weights_gives_the_image_of_one_with_them():
    fov, fine = (360.0, 360.0), (2 * SIZE, 2 * SIZE)
    object_ = coil_maps(4, fine, fov) * beating_thorax([0.0], fine, fov)[0]
    positions = spiral()
    kspace = measure(object_, positions)[None]
    weighted = np.concatenate([positions, np.linalg.norm(positions, axis=-1, keepdims=True)], -1)
    plain, known = (
        np.abs(reconstruct(kspace, "zero_filled", trajectory=one[None], matrix=(SIZE, SIZE)).image)
        for one in (positions, weighted)
    )
    scale = (plain * known).sum() / np.square(plain).sum()
    assert np.linalg.norm(scale * plain - known) / np.linalg.norm(known) < 0.05
