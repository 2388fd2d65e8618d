"""The time from frame to frame is one and the same in a report, in loops and in exports, whatever the vendor's tick."""

import re

import pytest
from PIL import Image as Picture

from gadgets.commands.main import main
from gadgets.files.images import read_images
from gadgets.wire.attributes import read_meta

SMALL = ["--matrix-x", "32", "--matrix-y", "24", "--coils", "2", "--acs-lines", "0", "--snr", "0"]
# 900 ms for 10 phases that are measured in a beat each; 8 readouts of 5 ms for a frame in real time
KINDS = {
    "one beat for each frame": (["--frames", "10", "--heart-rate", "66.6667", "--rr-variability", "0"], [], 90.0),
    "real time": (
        ["--time-axis", "repetition", "--repetition-time", "5", "--sampling", "interleaved", "--frames", "24"],
        [],
        40.0,
    ),
    "windows": (
        ["--time-axis", "repetition", "--repetition-time", "5", "--sampling", "interleaved", "--frames", "24"],
        ["--set", "realtime=sliding"],
        40.0,
    ),
}


@pytest.mark.parametrize(("kind", "vendor"), [*((kind, "SIEMENS") for kind in KINDS), ("real time", "PHILIPS")])
def test_one_frame_time_everywhere(kind, vendor, tmp_path):
    plan, settings, expected = KINDS[kind]
    scan, images, page = tmp_path / "scan.h5", tmp_path / "images.h5", tmp_path / "page.html"
    assert main(["simulate", str(scan), *SMALL, *plan, "--vendor", vendor]) == 0
    shown = ["--report", str(page), "--gif", str(tmp_path / "replay.gif"), "--truth", str(tmp_path / "scan_truth.npz")]
    assert main(["replay", str(scan), "-o", str(images), "-p", "zero_filled", *settings, *shown]) == 0
    text = re.sub(r"base64,[^\"]*", "", page.read_text(encoding="utf-8"))
    each = re.search(r"([\d.]+) ms each", text)
    steps = re.search(r"steps\s+of\s+([\d.]+)\s+ms", text)
    assert float(each[1]) == pytest.approx(expected, rel=0.02)
    assert float(steps[1]) == pytest.approx(float(each[1]), rel=0.01)
    shown = ["--truth", str(tmp_path / "scan_truth.npz"), "--gif", str(tmp_path / "evaluate.gif")]
    assert main(["evaluate", str(images), *shown]) == 0
    for name in ("replay", "evaluate"):
        with Picture.open(tmp_path / f"{name}.gif") as gif:
            assert gif.info["duration"] == expected
    stated = [
        float(step)
        for image in read_images(images)[1]
        for step in read_meta(image.attributes).get("cinestream_frame_time_ms", ())
    ]
    assert stated == pytest.approx([expected] * len(stated), rel=0.07)
    assert stated
