import dataclasses

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.connection.server import SharedEngine
from gadgets.preparation.odd_coils import check_coils
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Image, Readouts

COILS, ODD = 8, 3
NAMES = tuple("ABCDEFGH")


def normal(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def covariance_of(deviations):
    root = np.diag(deviations) @ (np.eye(COILS) + 0.1 * normal(COILS, COILS, seed=1))
    return root @ root.conj().T


def readout_of(deviations, signal=0.0):
    """Noise all over, and signal around the centre that reaches the ends of the strongest coils."""
    away = np.abs(np.arange(128) - 64)
    return np.asarray(deviations)[:, None] * (normal(COILS, 128) + signal * np.exp(-away / 8)[None]), 64


def test_usual_coils_are_as_they_were():
    """Also of very different gain: noise and signal of a coil scale together."""
    deviations = np.geomspace(1.0, 20.0, COILS)
    covariance = covariance_of(deviations)
    for readout in (None, readout_of(deviations), readout_of(deviations, 1000.0)):
        checked = check_coils(covariance, readout, NAMES)
        np.testing.assert_array_equal(checked.covariance, covariance)
        assert checked.used.all()
        assert checked.notes == ()


@pytest.mark.parametrize(("factor", "words"), [(0.0, "no noise, as if"), (30.0, "times the noise of the typical coil")])
def test_dead_and_noisy_coils_are_left_out(factor, words):
    deviations = np.ones(COILS)
    deviations[ODD] = factor
    checked = check_coils(covariance_of(deviations), readout_of(deviations), NAMES)
    assert np.flatnonzero(~checked.used).tolist() == [ODD]
    (note,) = checked.notes
    assert note.startswith("coil D has ")
    assert words in note


@pytest.mark.parametrize("said", [0.0, 0.01, 0.1])
def test_a_coil_that_was_weak_in_the_noise_scan_has_the_noise_of_the_data(said):
    deviations = np.ones(COILS)
    deviations[ODD] = said
    covariance = covariance_of(deviations)
    checked = check_coils(covariance, readout_of(np.ones(COILS)), NAMES)
    assert checked.used.all()
    assert 0.3 < checked.covariance[ODD, ODD].real < 3
    assert not np.delete(checked.covariance[ODD], ODD).any()
    others = np.delete(np.arange(COILS), ODD)
    np.testing.assert_array_equal(checked.covariance[np.ix_(others, others)], covariance[np.ix_(others, others)])
    assert "its noise readouts; that of the data is taken" in checked.notes[0]


def test_ends_that_were_not_measured_are_not_compared():
    deviations = np.ones(COILS)
    deviations[ODD] = 0.1
    readout, center = readout_of(np.ones(COILS))
    filled = readout.copy()
    filled[:, :16] = filled[:, 112:] = 0.0
    for one in ((filled, center), (readout[:, :4], 2), (readout[:, :0], 0)):
        assert check_coils(covariance_of(deviations), one, NAMES).notes == ()
    # where an echo was cut short its first samples are those of the centre
    cut = readout[:, 56:].copy()
    cut[:, :16] *= 1000.0
    assert check_coils(covariance_of(np.ones(COILS)), (cut, 8), NAMES).notes == ()


# --- a whole scan -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan():
    sizes = {"matrix_x": 64, "matrix_y": 56, "frames": 4, "slices": 1, "acceleration": 2, "acs_lines": 12}
    made = simulate(ScanPlan(**sizes, coils=COILS, seed=2, waveforms=False))
    return made.header, [item for item in made.items() if isinstance(item, Readouts)], np.abs(made.truth.image[0])


@pytest.fixture(scope="module")
def engine():
    return SharedEngine()


def with_noise(items, in_noise, in_images):
    """The noise of a coil times some factor, in the noise readouts and in the images."""
    generator = np.random.default_rng(5)
    noise = np.concatenate([item.data[item.flagged(AcquisitionFlag.NOISE)][:, ODD].ravel() for item in items])
    more = np.sqrt(max(0.0, in_images**2 - 1) / 2) * noise.std()
    for item in items:
        data, is_noise = item.data.copy(), item.flagged(AcquisitionFlag.NOISE)
        data[is_noise, ODD] *= in_noise
        shape = data[~is_noise, ODD].shape
        added = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
        data[~is_noise, ODD] += (more * added).astype(np.complex64)
        yield dataclasses.replace(item, data=data)


def without_coil(items):
    for item in items:
        yield Readouts(item.headers.copy(), np.ascontiguousarray(np.delete(item.data, ODD, 1)))


def error_of(scan, items, engine, **settings):
    chain = Chain(parse_header(scan[0]), Settings.of(method="cg_sense", device="cpu", **settings), engine)
    images = [item for item in chain(iter(list(items))) if isinstance(item, Image)]
    shown = np.stack([image.data[0, 0] for image in images])
    shown *= (shown * scan[2]).sum() / (shown**2).sum()
    return np.linalg.norm(shown - scan[2]) / np.linalg.norm(scan[2]), images, list(map(str, chain.summary.problems))


@pytest.mark.parametrize(
    ("in_noise", "in_images"),
    [(10, 10), (30, 30), (100, 100), (1000, 1000), (0.1, 1), (0.01, 1), (0, 1), (1, 30), (1, 300)],
)
def test_an_odd_coil_costs_no_more_than_its_absence(scan, engine, in_noise, in_images):
    error, images, problems = error_of(scan, with_noise(scan[1], in_noise, in_images), engine)
    assert error <= 1.1 * error_of(scan, without_coil(scan[1]), engine)[0]
    if in_images != 10:
        (told,) = [text for text in problems if text.startswith("coil")]
        assert all(told in image.attributes for image in images)


@pytest.mark.parametrize("in_images", [3, 8, 20, 100])
def test_a_noisy_coil_costs_no_more_without_noise_readouts(scan, engine, in_images):
    def images_only(items):
        runs = (item[~item.flagged(AcquisitionFlag.NOISE)] for item in items)
        return [run for run in runs if len(run)]

    error, images, _ = error_of(scan, images_only(with_noise(scan[1], 1, in_images)), engine)
    assert error <= 1.1 * error_of(scan, images_only(without_coil(scan[1])), engine)[0]
    assert all(f"coil {ODD} is weighed down: it has" in image.attributes for image in images)


def test_a_coil_that_is_left_out_goes_with_coil_compression(scan, engine):
    error, _, problems = error_of(scan, with_noise(scan[1], 1000, 1000), engine, virtual_coils=5)
    assert error <= 1.1 * error_of(scan, without_coil(scan[1]), engine, virtual_coils=5)[0]
    assert len(problems) == 1
