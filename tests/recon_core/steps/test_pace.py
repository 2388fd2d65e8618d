"""How long methods take: as in the table at first, then as they were found to."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.methods import METHODS, method_names, network_names
from recon_core.steps.pace import REFERENCE_SHAPE, Job, Pace, expected_seconds

HERE = ("cpu", 1)
RUNNABLE = method_names(lambda info: not info.chooses)


def job(method="kt_sense", weights="", place=HERE, shape=REFERENCE_SHAPE):
    return Job(method, weights, place, shape)


def test_every_method_that_is_run_is_in_the_table():
    assert {name for name in METHODS if METHODS[name].seconds > 0} == set(RUNNABLE)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_time_grows_with_the_slice(name):
    once = expected_seconds(job(name))
    assert once == pytest.approx(METHODS[name].seconds, rel=0.02)
    for axis, size in enumerate(REFERENCE_SHAPE):
        twice = expected_seconds(job(name, shape=(*REFERENCE_SHAPE[:axis], 2 * size, *REFERENCE_SHAPE[axis + 1 :])))
        by_image = axis == 1 and METHODS[name].network  # the coils are combined before a network sees them
        assert twice / once == pytest.approx(1 if by_image else 2, rel=0.02)


def test_before_anything_has_run_more_than_the_table_says_is_expected():
    assert Pace().seconds(job()) > expected_seconds(job())


def test_a_method_of_the_user_is_expected_to_be_as_slow_as_a_network(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", METHODS["cg_sense"].__class__(target="", label="", summary="", reference=""))
    networks = [expected_seconds(job(name)) for name in network_names()]
    assert min(networks) < expected_seconds(job("mine")) < max(networks)


def test_what_has_run_tells_the_pace_of_the_others_at_the_same_place():
    pace = Pace()
    pace.learn(job(), 7 * expected_seconds(job()))
    for name in RUNNABLE:
        assert pace.seconds(job(name)) == pytest.approx(7 * expected_seconds(job(name)))
    for place in (("cuda", 1), ("cpu", 2)):
        assert pace.seconds(job(place=place)) == Pace().seconds(job(place=place))


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.sampled_from([(2, 3, 40, 30), (100, 32, 256, 256)]))
def test_it_learns_what_a_method_takes_whatever_its_size(before, now, shape):
    """Half of what is new with each run, at the sizes of both."""
    pace, other = Pace(), job("crunet_mr", "small", shape=shape)
    pace.learn(other, before * expected_seconds(other))
    assert pace.seconds(other) == pytest.approx(before * expected_seconds(other))
    gaps = [abs(now - before)]
    for _ in range(4):
        pace.learn(job("crunet_mr", "small"), now * expected_seconds(job("crunet_mr")))
        gaps.append(abs(pace.seconds(other) / expected_seconds(other) - now))
    assert all(late <= 0.5 * early + 1e-6 * now for early, late in itertools.pairwise(gaps))


def test_weights_have_a_pace_of_their_own():
    pace = Pace()
    pace.learn(job("crunet_mr", "large"), 50 * expected_seconds(job("crunet_mr")))
    pace.learn(job("crunet_mr", "small"), expected_seconds(job("crunet_mr")))
    assert pace.seconds(job("crunet_mr", "large")) > 10 * pace.seconds(job("crunet_mr", "small"))


def test_what_was_slow_once_is_forgotten_slowly():
    """A first run that had to wait for memory or other work must not rule a method out for ever."""
    pace, slow = Pace(), job("crunet_mr", "small")
    pace.learn(slow, 50 * expected_seconds(slow))
    factors = []
    for _ in range(400):
        pace.learn(job(), expected_seconds(job()))
        factors.append(pace.seconds(slow) / expected_seconds(slow))
    assert factors[0] > 40
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] < 1.1


def test_a_run_that_fails_teaches_nothing(monkeypatch):
    pace, clock = Pace(), iter([0.0, 3.0, 10.0])
    monkeypatch.setattr("recon_core.steps.pace.work_time", lambda: next(clock))
    with pace.measured(job()):
        pass
    assert pace.seconds(job()) == pytest.approx(3)
    with pytest.raises(ValueError, match="out of luck"), pace.measured(job()):
        raise ValueError("out of luck")
    assert pace.seconds(job()) == pytest.approx(3)
