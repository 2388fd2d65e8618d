import numpy as np
import pytest

from gadgets.gating.ecg import DAY, Ecg
from gadgets.wire.messages import WAVEFORM_HEADER, Waveform
from recon_core.errors import DataError

TICK = 2.5


def packet(begin, on=(), *, samples=320, channels=5, waveform_id=0, sample_time=2500.0):
    """A packet that begins at `begin` ms, its trigger on at the samples `on`."""
    header = np.zeros((), WAVEFORM_HEADER)
    header["time_stamp"] = int(begin / TICK) % int(DAY / TICK)
    header["sample_time_us"], header["waveform_id"] = sample_time, waveform_id
    header["channels"], header["number_of_samples"] = channels, samples
    data = np.full((channels, samples), 2048, np.uint32)
    data[-1:] = 0
    data[-1:, list(on)] = 1 + np.arange(len(on))  # any value but 0
    return Waveform(header[()], data)


def ecg(*packets):
    made = Ecg(TICK)
    for one in packets:
        made.add(one)
    return made


def test_triggers_are_rising_edges_of_the_last_channel():
    made = ecg(packet(1000, [40, 41, 42]), packet(1800, [80]), packet(2600, [120, 319]))
    assert made.triggers(1000.0).tolist() == [1100.0, 2000.0, 2900.0, 2600 + 319 * 2.5]


def test_trigger_that_lasts_into_the_next_packet_is_one():
    assert ecg(packet(800, [318, 319]), packet(1600, [0, 1])).triggers(0.0).tolist() == [800 + 318 * 2.5]


def test_packets_may_come_twice_and_in_any_order():
    made = ecg(packet(1800, [80]), packet(1000, [40]), packet(1800, [80]))
    assert made.triggers(1000.0).tolist() == [1100.0, 2000.0]


def test_what_the_scanner_learned_and_other_signals_are_no_ecg():
    made = ecg(*(packet(1000, [40], waveform_id=number) for number in (1, 2, 3, 4, 5, 6, 7, 8, 9)))
    assert not made.has_data
    with pytest.raises(DataError, match="no ECG came"):
        made.triggers(0.0)


def test_damaged_packets_are_passed_over():
    empty = packet(1000, samples=0)
    assert not ecg(empty, packet(1000, channels=1), packet(1000, channels=0)).has_data
    for wrong in (0.0, np.nan, np.inf, 1e9):
        assert ecg(packet(1000, [40], sample_time=wrong)).triggers(0.0).tolist() == [1100.0]


def test_silent_trigger_channel():
    made = ecg(packet(0), packet(800))
    assert made.has_data
    with pytest.raises(DataError, match="silent"):
        made.triggers(0.0)


def test_midnight():
    made = ecg(packet(DAY - 800, [40]), packet(0, [80]))
    np.testing.assert_allclose(made.triggers(DAY - 500), [DAY - 700, DAY + 200])
    np.testing.assert_allclose(made.triggers(300.0), [-700, 200])
    assert made.reaches(DAY + 700)
    assert not made.reaches(DAY + 900)


def test_how_far_it_came():
    made = ecg()
    assert not made.reaches(0.0)
    made.add(packet(1000))
    assert made.reaches(1800.0)
    assert not made.reaches(1801.0)
