import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.errors import SettingsError
from recon_core.trust.weighing import LEAST_SHARE, Weighing, objections

numbers = st.floats(-100, 100)


@given(numbers, numbers, numbers)
def test_it_is_read_as_it_is_written(level, variance, change):
    weighing = Weighing(level=level, variance=variance, change=change)
    assert Weighing.parse(weighing.mapping()) == weighing


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"variance": 1}, "needs level, got variance"),
        ({"level": "high"}, "level of weighing must be a number up to 100 in size, got 'high'"),
        ({"level": True}, "level of weighing must be a number"),
        ({"level": float("nan")}, "level of weighing must be a number"),
        ({"level": 1e9}, "level of weighing must be a number up to 100"),
        ({"level": 0, "error": 0.1}, "weighing has no 'error'; there are level, variance, change"),
    ],
)
def test_what_is_no_weighing_is_refused(mapping, text):
    with pytest.raises(SettingsError, match=text):
        Weighing.parse(mapping)


def test_an_image_that_hardly_counts_is_not_sent():
    assert objections(LEAST_SHARE, "kt_sense") == []
    (reason,) = objections(0.012, "kt_sense")
    assert reason == "counts 1 % of what the data leave open beside that of kt_sense: nothing is gained by it"
