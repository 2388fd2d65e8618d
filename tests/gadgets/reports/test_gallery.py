"""The latest loops of running scans: what is kept of them, for how long, and what is made of it."""

import io
import json

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.reports import gallery as module
from gadgets.reports.gallery import Gallery
from gadgets.reports.viewer import HEADROOM
from recon_core.coils.running_maps import RunningMaps
from tests.gadgets.reports.test_scan import HEADER, beating, collect, frames_of


class _Collector:
    """Passes slices on to a gallery as the chain does."""

    def __init__(self, gallery, scan="a"):
        self.watch = gallery.begin(scan, HEADER)

    def add_image(self, image):
        pass


def shown(gallery, scan="a", number=0):
    return gallery.loops(scan)[number]


def test_a_loop_is_the_images_with_the_heart_in_the_middle():
    gallery, frames = Gallery(), np.roll(beating(7, (96, 128)), (5, 8), (1, 2))
    collect(_Collector(gallery), 1e-7 * frames, step=50.0)
    loop = shown(gallery)
    np.testing.assert_allclose(loop.series, 1e-7 * frames, atol=1e-7 * 2e-5)
    made = json.loads(loop.picture().text)
    assert made["seconds"] == 0.05
    assert made["tall"] == pytest.approx((240 / 24) / (640 / 64))
    levels = frames_of(made).astype(float)
    bright = levels[0][frames[0] > 1].mean()
    assert bright == pytest.approx(255 / HEADROOM, rel=0.03), "the disc is white at first"
    left, top, right, bottom = made["shown"]
    y, x = (int(axis.mean()) for axis in np.nonzero(frames[0] > 1))
    assert (left + right) / 2 == pytest.approx(x, abs=6)
    assert (top + bottom) / 2 == pytest.approx(y, abs=6)


def test_windows_of_a_scan_in_real_time_go_on_in_one_loop(monkeypatch):
    monkeypatch.setattr(module, "_MOST_FRAMES", 10)
    gallery, frames = Gallery(), beating(14)
    collector = _Collector(gallery)
    for one in frames:
        collect(collector, one[None], running=RunningMaps())
    loop = shown(gallery)
    np.testing.assert_allclose(loop.series, frames[-10:], atol=1e-4)
    assert loop.version == 13


def test_a_picture_is_made_once_and_anew_only_after_a_while(monkeypatch):
    made, panel = [], module.panel
    monkeypatch.setattr(module, "panel", lambda *given, **more: made.append(1) or panel(*given, **more))
    gallery = Gallery()
    collector = _Collector(gallery)
    collect(collector, beating()[:3], running=RunningMaps())
    assert not made, "nobody looks"
    first = shown(gallery).picture()
    assert shown(gallery).picture() is first
    monkeypatch.setattr(module, "_PATIENCE", 1e9)
    collect(collector, beating()[3:], running=RunningMaps())
    assert gallery.facts("a")["loops"][0]["version"] == first.version == 0, "nothing new is offered yet"
    assert shown(gallery).picture() is first
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    assert gallery.facts("a")["loops"][0]["version"] == 1
    assert shown(gallery).picture().version == 1
    assert len(made) == 2


def test_a_slice_that_is_made_again_replaces_its_loop():
    gallery = Gallery()
    for seed in range(2):
        collect(_Collector(gallery), beating(seed=seed))
    loop = shown(gallery)
    assert (len(gallery.loops("a")), loop.version) == (1, 1)
    np.testing.assert_allclose(loop.series, beating(seed=1), atol=1e-4)


def test_the_oldest_scans_go_first_where_there_is_no_room():
    one = beating(6, (64, 64))
    gallery = Gallery(bytes_kept=5 * 2 * one.size)
    for number in range(4):
        for slice_number in range(2):
            collect(_Collector(gallery, str(number)), one, slice_number)
    assert [len(gallery.loops(str(number))) for number in range(4)] == [0, 0, 2, 2]
    for slice_number in range(9):
        collect(_Collector(gallery, "large"), one, slice_number)
    assert [loop.key.slice for loop in gallery.loops("large")] == [5, 6, 7, 8]
    collect(_Collector(gallery, "huge"), beating(60, (64, 64)))
    assert len(gallery.loops("huge")) == 1, "the last one is always shown"


def test_large_images_are_kept_small():
    gallery, frames = Gallery(), beating(2, (600, 520))
    collect(_Collector(gallery), frames)
    series = shown(gallery).series
    assert series.shape == (2, 200, 173)
    expected = frames[:, :600, :519].reshape(2, 200, 3, 173, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(series, expected, atol=1e-4)


def test_the_signal_to_noise_ratio_is_that_of_bright_tissue():
    gallery, frames = Gallery(), 40 * beating(12, (64, 64))
    collect(_Collector(gallery), frames)
    assert gallery.facts("a")["snr"] == pytest.approx(np.percentile(frames.mean(axis=0), 99), rel=0.05)
    collect(_Collector(gallery, "b"), frames, whitened=False)
    assert gallery.facts("b")["snr"] is None


def test_coil_maps_are_a_picture_of_all_coils():
    gallery = Gallery()
    collect(_Collector(gallery), beating())
    with Picture.open(io.BytesIO(shown(gallery).maps_picture())) as picture:
        assert np.asarray(picture).max() == 255


def test_what_cannot_be_shown_is_logged_and_nothing_more(monkeypatch, caplog):
    gallery = Gallery()
    monkeypatch.setattr(module, "_loop", lambda *_: 1 / 0)
    collect(_Collector(gallery), beating())
    assert gallery.loops("a") == []
    assert "cannot be shown" in caplog.text


def test_a_dark_image_is_dark():
    gallery = Gallery()
    collect(_Collector(gallery), np.zeros((3, 16, 16), np.float32))
    assert not frames_of(json.loads(shown(gallery).picture().text)).any()
