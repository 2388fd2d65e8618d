"""Films: length, speed and size; what is said where the package is missing."""

import sys

import numpy as np
import pytest

from gadgets.export.movie import write_mp4
from gadgets.export.series import exportable_series
from gadgets.problems import Problems
from recon_core.errors import ResourceError
from tests.gadgets.export.support import cine, image


def series(images):
    return exportable_series({1: images}, 2.5, Problems())[0]


def test_the_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ResourceError, match="pip install av"):
        write_mp4(tmp_path / "a.mp4", series([image()]))
    assert not list(tmp_path.iterdir())


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as film:
        frames = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
        return frames, float(film.streams.video[0].average_rate)


def test_a_film_lasts_five_seconds_in_real_time(tmp_path):
    pytest.importorskip("av")
    images = cine(slices=3, frames=20, rr=800)
    for each in images:
        each.data[:] = 100.0 if each.header["phase"] < 10 else 1000.0
    write_mp4(tmp_path / "a.mp4", series(images))
    frames, rate = decoded(tmp_path / "a.mp4")
    assert rate == pytest.approx(25)
    assert len(frames) == 140  # seven beats of 0.8 s are the first to fill 5 s
    height, width = frames[0].shape
    assert height % 2 == width % 2 == 0
    # two by two, one place empty; rows are 15 mm apart, columns 10 mm
    assert height / width == pytest.approx(6 * 15 / (8 * 10), abs=0.02)
    centre = [int(frame[height // 4, width // 4]) for frame in frames[:20]]
    assert max(centre[:9]) < 60 < 200 < min(centre[11:])
    assert frames[25][height // 4, width // 4] < 60  # and again


def test_a_film_without_time_stamps_and_with_negative_values(tmp_path):
    pytest.importorskip("av")
    images = [image(np.full((6, 8), -5.0, np.float32), phase=i, image_type=2) for i in range(3)]
    write_mp4(tmp_path / "a.mp4", series(images))
    frames, rate = decoded(tmp_path / "a.mp4")
    assert rate == pytest.approx(25)
    assert len(frames) == 126
    assert frames[0].mean() > 200


def test_a_film_that_cannot_be_written(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(ResourceError, match="cannot write"):
        write_mp4(tmp_path / "nowhere" / "a.mp4", series([image()]))
