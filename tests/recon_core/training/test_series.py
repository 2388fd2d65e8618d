from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.training.library import Library
from recon_core.training.series import KINDS, draw_series, second_contrast, sharpened

SHAPE = (10, 36, 34)  # frame, y, x


def beating_disc(n_frames=8, size=40):
    """A cine of one cycle whose disc grows and shrinks, and a still of it."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = 0.5 + 0.2 * np.cos(2 * np.pi * np.arange(n_frames) / n_frames)[:, None, None]
    cine = (1 / (1 + np.exp(20 * (np.hypot(y, x) - radius)))).astype(np.float32)
    return Library(cines=[cine], stills=[cine[0]])


LIBRARIES = {"empty": Library(), "full": beating_disc()}


@lru_cache
def drawn(seed, kind=None, library="empty", shape=SHAPE):
    return draw_series((seed,), LIBRARIES[library], kind=kind, frames=shape[0], matrix=shape[1:])


def steps(image):
    """Relative change from every frame to the next, the last one to the first."""
    following = np.roll(image, -1, axis=0)
    return np.linalg.norm((following - image).reshape(len(image), -1), axis=1) / np.linalg.norm(image[0])


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_is_what_was_asked_for(kind, library):
    series = drawn(0, kind, library)
    assert series.kind == kind
    assert series.image.shape == SHAPE
    assert series.image.dtype == np.complex64
    assert series.anatomy.shape == SHAPE[1:]
    assert series.anatomy.dtype == np.float32
    assert np.isfinite(series.image).all()
    assert 0 <= series.anatomy.min() <= series.anatomy.max() <= 1
    assert np.quantile(np.abs(series.image), 0.999) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_seed_draws_the_same_and_another_one_does_not(library):
    first = drawn(3, None, library)
    again = draw_series((3,), LIBRARIES[library], frames=SHAPE[0], matrix=SHAPE[1:])
    assert (again.kind, again.image.tobytes()) == (first.kind, first.image.tobytes())
    assert again.anatomy.tobytes() == first.anatomy.tobytes()
    for other in (drawn(4, None, library), draw_series((3, 0), LIBRARIES[library], frames=10, matrix=SHAPE[1:])):
        assert np.abs(other.image - first.image).max() > 0.1


def test_what_is_not_asked_for_is_chosen():
    chosen = [draw_series((seed,), Library(), frames=1) for seed in range(4)]
    assert len({series.image.shape for series in chosen}) == 4
    assert all(96 <= n <= 192 and n % 2 == 0 for series in chosen for n in series.image.shape[1:])
    frames = {len(draw_series((seed,), Library(), matrix=(8, 8)).image) for seed in range(6)}
    assert len(frames) > 1
    assert frames <= {8, 10, 12, 16, 20, 25, 30, 40}
    kinds = {draw_series((seed,), Library(), frames=1, matrix=(8, 8)).kind for seed in range(12)}
    assert kinds == set(KINDS)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    library=st.sampled_from(sorted(LIBRARIES)),
    frames=st.integers(1, 5),
    matrix=st.tuples(st.integers(1, 21), st.integers(1, 21)),
)
def test_any_small_size(seed, kind, library, frames, matrix):
    series = draw_series((seed,), LIBRARIES[library], kind=kind, frames=frames, matrix=matrix)
    assert series.image.shape == (frames, *matrix)
    assert np.isfinite(series.image).all()
    assert np.isfinite(series.anatomy).all()


@pytest.mark.parametrize("shape", [(1, 33, 47), (40, 17, 16), (2, 300, 9)])
def test_extreme_sizes(shape):
    series = drawn(1, "realtime", "full", shape)
    assert series.image.shape == shape
    assert np.isfinite(series.image).all()
    assert np.abs(series.image).max() > 0.5


# --- how it moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_something_moves(kind):
    for seed in range(3):
        assert 0.003 < np.median(steps(drawn(seed, kind).image)) < 1


def test_a_cine_is_one_cycle_and_a_real_time_series_is_none():
    leaps = {}
    for kind in ("cine", "realtime"):
        changes = [steps(drawn(seed, kind).image) for seed in range(7)]
        # from the last frame to the first, in relation to what neighbours differ by
        leaps[kind] = [change[-1] / np.median(change[:-1]) for change in changes]
    assert np.median(leaps["cine"]) < 1.6
    assert max(leaps["cine"]) < 3
    assert np.median(leaps["realtime"]) > 2


def test_magnitude_and_phase_both_change():
    image = drawn(0, "view").image
    bright = np.abs(image).min(0) > 0.2
    assert np.abs(image).std(0).max() > 0.05
    assert np.angle(image * image[:1].conj())[:, bright].std() > 0.01
    assert np.angle(image[0, bright]).std() > 0.1


def test_images_of_the_library_are_used():
    pairs = [(drawn(seed, "cine").image, drawn(seed, "cine", "full").image) for seed in range(4)]
    assert any(np.abs(without - using).max() > 0.1 for without, using in pairs)


def test_the_second_contrast_has_the_borders_of_the_first_frame():
    found = []
    for seed in range(6):
        series = drawn(seed, "cine", shape=(1, 96, 90))
        magnitude = np.abs(series.image[0])
        edges, others = (np.hypot(*np.gradient(np.float64(plane))).ravel() for plane in (magnitude, series.anatomy))
        found.append(np.corrcoef(edges, others)[0, 1])
        assert np.abs(magnitude / magnitude.max() - series.anatomy).max() > 0.2
    assert np.median(found) > 0.3


def test_the_second_contrast_maps_grey_values_and_leaves_air():
    plane = torch.zeros(40, 40)
    plane[10:30, 10:20], plane[10:30, 20:30] = 0.5, 1.0
    for seed in range(4):
        found = second_contrast(np.random.default_rng(seed), plane)
        knots = np.random.default_rng(seed).uniform(0, 1, 5)
        assert found.dtype == torch.float32
        assert found[:9].abs().max() == 0
        assert float(found[20, 15]) == pytest.approx((knots[1] + knots[2]) / 2, abs=1e-6)
        assert float(found[20, 25]) == pytest.approx(knots[4], abs=1e-6)


# --- sharpness --------------------------------------------------------------------------------------------------------


def smooth():
    """A series of less that is fine than any scene has."""
    series = drawn(0, "cine")
    spectrum = np.fft.fft2(series.image)
    spectrum *= np.exp(-20 * sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in SHAPE[1:]), indexing="ij")))
    return replace(series, image=np.fft.ifft2(spectrum).astype(np.complex64))


def shares(image):
    """Of the energy, beyond half of either axis."""
    power = (np.abs(np.fft.fft2(image)) ** 2).sum(0)
    outer = [np.abs(np.fft.fftfreq(n)) >= 0.25 for n in power.shape]
    return power[outer[0]].sum() / power.sum(), power[:, outer[1]].sum() / power.sum()


def test_a_series_that_is_sharpened_has_more_of_what_is_fine():
    series = smooth()
    left = sharpened(series, 0.0).image
    assert left / np.abs(left).max() == pytest.approx(series.image / np.abs(series.image).max(), abs=1e-5)
    found = []
    for strength in (0.0, 1.0, 3.0):
        sharper = sharpened(series, strength)
        assert sharper.image.dtype == np.complex64
        assert np.quantile(np.abs(sharper.image), 0.999) == pytest.approx(1, rel=0.05)
        found.append(max(shares(sharper.image)))
    assert found[0] < found[1] / 1.5 < found[2] / 3


def test_no_series_is_sharpened_to_texture():
    """Up to what patients have, and one that has as much is left as it is."""
    series = drawn(0, "cine")
    once = sharpened(smooth(), 60.0)
    assert 0.04 < max(shares(once.image)) <= 1 / 16
    noise = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    series = replace(series, image=noise[0] + 1j * noise[1])
    left = sharpened(series, 3.0).image
    assert left / np.abs(left).max() == pytest.approx(series.image / np.abs(series.image).max(), abs=1e-5)
