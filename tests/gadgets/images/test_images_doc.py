"""docs/images.md against what the chain emits."""

import dataclasses
import re
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.ct import SliceCt
from gadgets.images.maker import SERIES_KINDS, ImageMaker
from gadgets.problems import Problems
from gadgets.settings.settings import FIELDS, Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import IMAGE_HEADER, Image
from recon_core.engine import Engine
from tests.gadgets.images.test_maker import complete_slice, full_header, with_others
from tests.helpers.paths import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "images.md").read_text(encoding="utf-8")


def rows_of(heading):
    """Cells of the table below a heading."""
    part = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return lines[1:]


def keys_of(heading):
    return [re.fullmatch(r"`(.*)`", row[0])[1] for row in rows_of(heading)]


@pytest.fixture(scope="module")
def emitted():
    """The keys of all kinds of images."""
    images = []
    plan = ScanPlan(
        matrix_x=32, matrix_y=24, frames=4, coils=3, acs_lines=8, gating="retrospective", segments=4, noise_readouts=0
    )
    made = simulate(plan)
    settings = Settings.of(method="zero_filled", device="cpu", series_by="slice", orientation="flipped")
    images += Chain(parse_header(made.header), settings, lambda: Engine("cpu"))(made.items())
    made = simulate(dataclasses.replace(plan, segments=0, averages=3))
    settings = apply(settings, {"gated_output": "beats"})
    images += Chain(parse_header(made.header), settings, lambda: Engine("cpu"))(made.items())
    complete = complete_slice(physiology_time_stamp=4304495)
    complete = dataclasses.replace(complete, stamps=np.ones((3, 4, 2), np.uint32))
    ct = SimpleNamespace(digest="a", transform_digest="b")
    labelled = SliceCt(ct, None, Problems()).label(complete, SimpleNamespace(status="ok", message="", coverage=1.0))
    maker = ImageMaker(parse_header(full_header()), Settings.of(emit_fused=True, extra_series="difference"))
    images += maker.make(labelled, with_others())
    images = [image for image in images if isinstance(image, Image)]
    keys = {key for image in images for key in ismrmrd.Meta.deserialize(image.attributes)}
    return {re.sub(r"^(user_int|user_float)_[0-7]$", r"\1_N", key) for key in keys}


def test_every_attribute_is_documented_and_every_documented_one_comes(emitted):
    documented = keys_of("Attributes")
    assert len(set(documented)) == len(documented)
    assert set(documented) == emitted, "docs/images.md, Attributes, and the images differ"


def test_every_field_of_the_header_is_documented():
    assert keys_of("Header") == list(IMAGE_HEADER.names)


def test_series_are_documented_as_they_are():
    rows = rows_of("Series")
    found = {int(plus): "" if kind == "the images" else kind for plus, kind, *_ in rows}
    assert found == SERIES_KINDS


def test_settings_that_are_named_exist():
    for name in ("series", "series_by", "extra_series", "window_center", "window_width", "orientation", "stamp_tick"):
        assert f"`{name}" in DOCUMENT
        assert name in FIELDS
