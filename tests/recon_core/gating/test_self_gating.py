import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.gating.self_gating import find_triggers, find_triggers_of_spokes
from recon_core.simulate.phantom import volume_curve

STEP = 3.0  # ms from readout to readout
LINES, COILS, COLUMNS = 24, 3, 16


def measured(order, rr=(900.0,) * 8, noise=0.05, seed=0, motion=1.0):
    """Lines in an `order` of rows: each has its own complex answer to the volume of a ventricle, and noise."""
    rng = np.random.default_rng(seed)
    row = np.asarray(order, np.intp)
    time = STEP * np.arange(len(row))
    waves = np.concatenate([[0.0], np.cumsum(rr)])
    beat = np.searchsorted(waves, time, side="right") - 1
    volume = volume_curve((time - waves[beat]) / np.asarray(rr)[beat])

    def random(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    still, moving = random(LINES, COILS, COLUMNS), random(LINES, COILS, COLUMNS)
    data = still[row] + motion * 0.2 * moving[row] * volume[:, None, None] + noise * random(len(row), COILS, COLUMNS)
    return data.astype(np.complex64), row, time, waves


def freely(passes=120, lines=range(4, 20)):
    return np.tile(np.fromiter(lines, int), passes)


def in_segments(beats=8, passes=75):
    return np.concatenate([np.tile(np.arange(4) + 2 * beat, passes) for beat in range(beats)])


def distances(found, waves, time):
    inner = waves[waves < time[-1] - 500]
    return np.array([found[np.argmin(np.abs(found - wave))] - wave for wave in inner])


@pytest.mark.parametrize("order", [freely(), in_segments()])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_triggers_are_where_the_r_waves_were(order, seed):
    data, row, time, waves = measured(order, seed=seed)
    found = find_triggers(data, row, time, 12)
    away = distances(found, waves, time)
    assert np.abs(away).max() < 60
    assert away.std() < 15
    assert len(found) <= np.count_nonzero(waves < time[-1])


def test_beats_of_different_length():
    rr = [900, 1050, 800, 950, 700, 1000, 850, 1100]
    data, row, time, waves = measured(freely(140), rr=rr)
    away = distances(find_triggers(data, row, time, 12), waves, time)
    assert np.abs(away).max() < 80
    assert np.corrcoef(np.diff(waves[: len(away)] + away), rr[: len(away) - 1])[0, 1] > 0.95


def test_sign_and_phase_of_the_coils_do_not_matter():
    data, row, time, _ = measured(in_segments())
    turned = data * np.exp(1j * np.arange(LINES))[row][:, None, None].astype(np.complex64)
    np.testing.assert_allclose(find_triggers(turned, row, time, 12), find_triggers(data, row, time, 12), atol=6)


def test_clock_may_begin_anywhere():
    data, row, time, waves = measured(in_segments())
    away = distances(find_triggers(data, row, time + 1e6, 12) - 1e6, waves, time)
    assert np.abs(away).max() < 60


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"order": freely(), "motion": 0.0}, "noise and no heartbeat"),
        ({"order": freely(), "motion": 0.0, "noise": 0.0}, "no motion"),
        ({"order": np.arange(24)}, "no motion"),
        ({"order": freely(30, range(11, 13)), "noise": 0.001}, "too short"),
        ({"order": freely(20)}, "heartbeat"),
    ],
)
def test_no_heartbeat(values, words):
    data, row, time, _ = measured(**values)
    with pytest.raises(DataError, match=words):
        find_triggers(data, row, time, 12)


def test_drift_is_no_heartbeat():
    data, row, time, _ = measured(freely(), motion=0.0, noise=0.01)
    drifting = data * (1 + 1e-4 * time)[:, None, None].astype(np.float32)
    with pytest.raises(DataError, match="at no heart rate"):
        find_triggers(drifting, row, time, 12)


def centres(seed=0, *, noise=0.01, motion=1.0, turning=0.3, breathing=0.0, rr=(900.0, 1000.0, 800.0, 950.0) * 2):
    """The k-space centre of golden-angle spokes: it follows the volume, the angle of the spoke, and breathing."""
    rng = np.random.default_rng(seed)
    time = STEP * np.arange(2400)
    angles = np.radians(111.246) * np.arange(len(time))
    waves = np.concatenate([[0.0], np.cumsum(rr)])
    beat = np.searchsorted(waves, time, side="right") - 1
    volume = volume_curve((time - waves[beat]) / np.asarray(rr)[beat])

    def random(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    still, moving, turned, breath = random(4, COILS)
    data = still + 0.2 * motion * moving * volume[:, None] + turning * turned * np.cos(angles)[:, None]
    data = data + breathing * breath * np.cos(time / 1000 * 2 * np.pi * 0.25)[:, None]
    return (data + noise * random(len(time), COILS)).astype(np.complex64), angles, time, waves


@pytest.mark.parametrize("more", [{}, {"breathing": 0.5}, {"turning": 1.0}, {"noise": 0.02}])
def test_the_centre_of_spokes_shows_the_beats(more):
    data, angles, time, waves = centres(**more)
    away = distances(find_triggers_of_spokes(data, angles, time), waves, time)
    assert np.abs(away).max() < 60
    assert away.std() < 30


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"motion": 0.0}, "noise and no heartbeat"),
        ({"motion": 0.0, "noise": 0.0}, "stand still"),
        ({"motion": 0.0, "noise": 1e-3, "breathing": 0.5}, "slowly"),
    ],
)
def test_spokes_without_a_heartbeat(more, words):
    data, angles, time, _ = centres(**more)
    with pytest.raises(DataError, match=words):
        find_triggers_of_spokes(data, angles, time)


def test_a_few_spokes_are_too_short():
    data, angles, time, _ = centres()
    with pytest.raises(DataError, match="too short"):
        find_triggers_of_spokes(data[:100], angles[:100], time[:100])
