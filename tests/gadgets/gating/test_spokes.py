import numpy as np
import pytest

from gadgets.gating.gate import Gate
from gadgets.gating.spokes import centre_of_spokes, gate_spokes
from gadgets.problems import Kind, Problems
from gadgets.settings.settings import Settings
from gadgets.wire.header import parse_header
from recon_core.errors import DataError
from recon_core.off_grid.trajectory import spoke_positions
from tests.helpers.builders import header_xml, readouts

TICK = 2.5  # ms
STEP = 4  # ticks from spoke to spoke: 10 ms


def scan(rr=(80, 80, 80, 80)):
    """Spokes of beats of so many, with stamps: ``(headers, centres, angles)``."""
    made = readouts(sum(rr), samples=8)
    since = np.concatenate([np.arange(length) for length in rr])
    made.headers["acquisition_time_stamp"] = 1000 + STEP * np.arange(len(since))
    made.headers["physiology_time_stamp"][:, 0] = STEP * since
    return made.headers, made.data[:, :, 4], np.arange(len(since), dtype=float), since


def gated(headers, centres, angles, promised=0, problems=None, **settings):
    header = parse_header(header_xml(trajectory="radial"))
    problems = problems or Problems()
    gate = Gate(header, Settings.of(gating="retrospective", stamp_tick=TICK, **settings), problems)
    return gate_spokes(gate, "slice 0", headers, centres, angles, promised)


def mean(*args, **more):
    """The frames of the mean beat."""
    (found,) = gated(*args, **more)
    return found


def test_spokes_belong_to_the_nearest_frame_of_the_cycle():
    headers, centres, angles, since = scan()
    found = mean(headers, centres, angles, gated_frames=10)
    away = np.abs((since[:, None] / 80 - np.arange(10) / 10 + 0.5) % 1 - 0.5)
    clear = since % 8 != 4  # half-way between two frames
    np.testing.assert_array_equal(found.frame[clear], away.argmin(axis=1)[clear])
    assert found.gating.source == "stamps"
    assert found.gating.rr == pytest.approx(800, abs=10)
    np.testing.assert_array_equal(found.headers["idx"]["phase"], np.arange(10))


def test_a_beat_that_is_too_short_gives_no_spokes():
    headers, centres, angles, _ = scan((80, 80, 50, 80, 80))
    found = mean(headers, centres, angles, gated_frames=10)
    assert (found.frame[160:210] == -1).all()
    assert (np.delete(found.frame, np.arange(160, 210)) >= 0).all()
    assert [beat.used for beat in found.gating.beats] == [True, True, False, True, True]
    assert "rejected 500 ms" in found.notes[0]


def test_frames_are_as_many_as_set_or_promised_or_usual():
    made = scan()[:3]
    assert len(mean(*made, promised=12).headers) == 12
    assert len(mean(*made, promised=12, gated_frames=9).headers) == 9
    assert len(mean(*made).headers) == 25


def test_every_accepted_beat_has_frames_of_its_own():
    headers, centres, angles, since = scan((80, 80, 50, 80, 80))
    beat = np.repeat(np.arange(5), (80, 80, 50, 80, 80))
    found = gated(headers, centres, angles, gated_frames=10, gated_output="beats")
    assert [one.gating.beat for one in found] == [0, 1, 3, 4]
    for one in found:
        number, own = one.gating.beat, one.frame >= 0
        np.testing.assert_array_equal(one.headers["idx"]["repetition"], number)
        np.testing.assert_array_equal(one.headers["idx"]["phase"], np.arange(10))
        assert f"of beat {number}, 800 ms regular" in one.notes[0]
        # those within half a frame of the next R wave belong to its beat; none come from the beat that is rejected
        nearest = beat + (since > 76)
        clear = since != 76
        np.testing.assert_array_equal(own[clear], ((nearest == number) & (beat != 2))[clear])
        assert np.bincount(one.frame[own])[1:].tolist() == pytest.approx([8] * 9, abs=1)


def test_beats_with_too_few_spokes_become_the_mean_one():
    problems = Problems()
    found = mean(*scan()[:3], problems=problems, gated_output="beats", gated_frames=100)
    assert found.gating.beat is None
    assert Kind.GATED_OUTPUT in problems.kinds


def test_noise_without_stamps_is_refused():
    headers, centres, angles, _ = scan()
    headers["physiology_time_stamp"] = 0
    with pytest.raises(DataError, match="cannot be gated retrospectively"):
        gated(headers, centres, angles)


def test_the_centre_of_a_spoke_is_its_sample_at_zero():
    angles = np.array([0.3, 2.0, -1.0])
    positions = spoke_positions(angles, 8, 3, (4, 4))
    data = readouts(3, samples=8).data
    centres, found = centre_of_spokes(data, positions)
    np.testing.assert_array_equal(centres, data[:, :, 3])
    np.testing.assert_allclose(found, angles, atol=1e-6)
