import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.classical.partial_fourier import complete, homodyne, measured_span, partial_extents, pocs
from recon_core.physics.fourier import fft, ifft

AXES = (-2, -1)


def lines(n_frames, n_y, first, last):
    mask = torch.zeros(n_frames, n_y, dtype=torch.bool)
    mask[:, first : last + 1] = True
    return mask


def blob(n_frames, n_y, n_x, *, phase=0.0, seed=0):
    """Positive images times a phase that varies slowly over the image, and from one end of it to the other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
    image = 2 * (y**2 + x**2 < 0.6) + 0.3 * rng.standard_normal((n_frames, n_y, n_x)) + 2
    return torch.tensor(
        image * np.exp(1j * phase * (0.5 + 0.6 * np.sin(np.pi * x) + 0.4 * np.cos(np.pi * y))), dtype=torch.complex64
    )


def cut(image, mask, columns=None):
    kspace = fft(image, AXES) * mask[:, :, None]
    return ifft(kspace if columns is None else kspace * columns, AXES)


def mirrored(array, axes):
    """Sample k at -k, by the definition of the index."""
    for axis in axes:
        n = array.shape[axis]
        array = array.index_select(axis, (2 * (n // 2) - torch.arange(n)) % n)
    return array


def error(image, truth):
    return float(torch.linalg.vector_norm(image - truth) / torch.linalg.vector_norm(truth))


# --- what was measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "span"),
    [
        ([1, 1, 1, 1, 1, 1], (0, 5)),
        ([0, 0, 1, 1, 1, 1], (2, 5)),
        ([0, 0, 1, 0, 0, 1, 0, 0], (0, 7)),  # every third line: what is missing at the ends is a gap as any other
        ([0, 0, 0, 1, 0, 0, 1, 0], (3, 7)),
        ([0, 0, 0, 1, 0, 0, 0, 0], (3, 3)),
        ([0, 0, 0, 0], (0, 3)),
    ],
)
def test_the_span_goes_to_the_border_where_no_more_than_a_gap_is_missing(measured, span):
    assert measured_span(torch.tensor(measured, dtype=torch.bool)) == span


@given(n=st.integers(8, 41), step=st.integers(1, 4), offset=st.integers(0, 3), low=st.booleans())
def test_undersampling_alone_is_not_partial_fourier(n, step, offset, low):
    mask = torch.zeros(3, n, dtype=torch.bool)
    for frame in range(3):
        mask[frame, (offset + frame * low) % step :: step] = True
    assert partial_extents(mask) == {}


@pytest.mark.parametrize("n", [24, 25])
def test_a_symmetric_cut_is_not_partial_fourier(n):
    centre = n // 2
    assert partial_extents(lines(2, n, centre - 8, centre + 8)) == {}
    assert partial_extents(lines(2, n, centre - 8, centre + 7)) == {}  # an even number, as senders centre it
    assert set(partial_extents(lines(2, n, centre - 8, centre + 10))) == {-2}


def test_every_frame_has_its_own_first_line():
    mask = torch.zeros(3, 24, dtype=torch.bool)
    for frame in range(3):
        mask[frame, 6 + frame :: 3] = True
    extents = partial_extents(mask)
    assert extents[-2].first.tolist() == [6, 7, 8]
    assert extents[-2].last.tolist() == [23, 23, 23]  # beyond, nothing is missing but a gap


def test_columns_are_an_axis_like_lines():
    columns = torch.arange(20) >= 6
    extents = partial_extents(torch.ones(2, 16, dtype=torch.bool), columns)
    assert set(extents) == {-1}
    assert (extents[-1].first.tolist(), extents[-1].last.tolist()) == ([6], [19])
    assert set(partial_extents(lines(2, 16, 5, 15), columns)) == {-2, -1}


# --- POCS -------------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    n_y=st.integers(16, 27),
    n_x=st.integers(16, 27),
    missing=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    sides=st.tuples(st.booleans(), st.booleans()),
    iterations=st.integers(1, 6),
)
def test_pocs_leaves_measured_samples_as_they_are(n_y, n_x, missing, sides, iterations):
    ky, kx = torch.arange(n_y), torch.arange(n_x)
    rows = ky >= missing[0] if sides[0] else ky < n_y - missing[0]
    columns = kx >= missing[1] if sides[1] else kx < n_x - missing[1]
    mask = rows.expand(2, -1)
    image = blob(2, n_y, n_x, phase=1.0, seed=n_y)
    extents = partial_extents(mask, columns)
    partial = cut(image, mask, columns)
    if not extents:
        return
    completed = fft(pocs(partial, extents, iterations=iterations), AXES)
    measured = mask[:, :, None] & columns
    torch.testing.assert_close(completed[measured], fft(image, AXES)[measured], atol=2e-4, rtol=0)
    assert torch.linalg.vector_norm(completed[~measured]) > 0


@settings(max_examples=20)
@given(n_y=st.sampled_from([21, 24, 27]), missing=st.integers(3, 7), low=st.booleans())
def test_a_real_image_is_recovered(n_y, missing, low):
    truth = blob(2, n_y, 16)
    mask = lines(2, n_y, missing, n_y - 1) if low else lines(2, n_y, 0, n_y - 1 - missing)
    if n_y % 2 == 0 and low:  # the first of an even number of lines has no mirror image
        kspace = fft(truth, AXES)
        kspace[:, 0] = 0
        truth = ifft(kspace, AXES)
    partial = cut(truth, mask)
    assert error(partial, truth) > 0.02
    extents = partial_extents(mask)
    assert error(pocs(partial, extents, iterations=40), truth) < 1e-5
    errors = [error(pocs(partial, extents, iterations=n), truth) for n in (1, 2, 3)]
    # every pass adds half of what is missing
    np.testing.assert_allclose([errors[1] / errors[0], errors[2] / errors[1]], 0.5, rtol=1e-3)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("how", ["pocs", "homodyne"])
def test_a_slow_phase_is_no_obstacle(axis, how):
    truth = blob(2, 40, 40, phase=0.5)
    measured = torch.arange(40) >= 14
    mask = measured.expand(2, -1) if axis == -2 else torch.ones(2, 40, dtype=torch.bool)
    columns = measured if axis == -1 else None
    partial = cut(truth, mask, columns)
    completed, notes = complete(partial, partial_extents(mask, columns), how)
    assert error(completed.abs(), truth.abs()) < 0.7 * error(partial.abs(), truth.abs())
    assert how in notes[0]
    assert ("ky" if axis == -2 else "kx") in notes[0]


# --- homodyne ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize("low", [True, False])
def test_homodyne_is_what_its_definition_says(n, low):
    first, last = (7, n - 1) if low else (0, n - 8)
    mask = lines(1, n, first, last)
    partial = cut(blob(1, n, 12, phase=1.0), mask)
    centre = n // 2
    half = centre - first if low else last - centre
    weight, window = np.zeros(n), np.zeros(n)
    for line in range(n):
        k = line - centre if low else centre - line
        if abs(k) <= half:
            weight[line] = 1 + k / (half + 1)
            window[line] = np.cos(np.pi / 2 * abs(k) / (half + 1))
        elif k > half:
            weight[line] = 2
    if not low and n % 2 == 0:
        weight[0] = 1  # it is its own mirror image
    kspace = fft(partial, AXES)
    slow = ifft(kspace * torch.tensor(window)[:, None], AXES)
    phase = slow / slow.abs()
    expected = (ifft(kspace * torch.tensor(weight)[:, None], AXES) * phase.conj()).real * phase
    torch.testing.assert_close(homodyne(partial, partial_extents(mask)), expected.to(torch.complex64))


@settings(max_examples=20)
@given(n_y=st.sampled_from([21, 27]), missing=st.integers(3, 7), low=st.booleans())
def test_homodyne_recovers_a_real_image(n_y, missing, low):
    truth = blob(2, n_y, 16)
    mask = lines(2, n_y, missing, n_y - 1) if low else lines(2, n_y, 0, n_y - 1 - missing)
    assert error(homodyne(cut(truth, mask), partial_extents(mask)), truth) < 1e-5


def test_on_both_axes_only_what_has_a_measured_mirror_image_is_added():
    truth = blob(1, 24, 24)
    mask, columns = lines(1, 24, 8, 23), torch.arange(24) >= 6
    extents = partial_extents(mask, columns)
    known = mask[:, :, None] & columns
    both = known | mirrored(known, AXES)
    for completed in (pocs(cut(truth, mask, columns), extents, iterations=30), homodyne(truth, extents)):
        kspace = fft(completed, AXES)
        torch.testing.assert_close(kspace[both], fft(truth, AXES)[both], atol=2e-4, rtol=0)
        assert float(kspace[~both].abs().max()) < 2e-4


# --- where there is nothing to do -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pocs", "homodyne"])
def test_full_kspace_is_not_touched(how):
    image = blob(2, 24, 20, phase=1.0)
    extents = partial_extents(torch.ones(2, 24, dtype=torch.bool), torch.ones(20, dtype=torch.bool))
    completed, notes = complete(image, extents, how)
    assert completed is image
    assert notes == ()


@pytest.mark.parametrize("how", ["pocs", "homodyne"])
def test_without_the_centre_there_is_no_phase(how):
    mask = torch.stack([lines(1, 24, 8, 23)[0], lines(1, 24, 12, 23)[0], torch.zeros(24, dtype=torch.bool)])
    partial = cut(blob(3, 24, 16, phase=1.0), mask)
    completed, notes = complete(partial, partial_extents(mask), how)
    assert not torch.equal(completed[0], partial[0])
    assert torch.equal(completed[1:], partial[1:])
    assert "stays incomplete" in notes[1]
    assert "1 of 3 frames" in notes[1]
