"""Image arrays for a Gadgetron's own gadgets, and what is handed on to them."""

import functools

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.images.image_array import join_series
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.containers import ImageArray, ReconData
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image, Readouts, Text, Waveform
from recon_core.engine import Engine
from tests.helpers.peers import StubEngine, serving, talk_scan, wire
from tests.helpers.stock import Stock, meta_values

SMALL = {"matrix_x": 32, "matrix_y": 24, "frames": 3, "coils": 3, "acs_lines": 8, "acceleration": 2, "slices": 2}
SCANS = {
    "plain": {},
    "phase oversampling": {"phase_oversampling": 0.5},
    "interpolation": {"interpolation": 1.5},
    "both": {"phase_oversampling": 0.25, "interpolation": 2.0},
    "partial Fourier": {"sampling": "full", "partial_fourier": 0.7, "asymmetric_echo": 0.2},
    "weak": {"snr": 0.0},
}


@functools.cache
def scan(name="plain"):
    made = simulate(ScanPlan(**{**SMALL, **SCANS[name]}))
    return made.header, tuple(made.items())


def through(header, items, engine=None, *, to_gadgetron=True, problems=None, **settings):
    options = Settings.of(**{"method": "zero_filled", "device": "cpu", **settings})
    engine = engine or StubEngine()
    chain = Chain(parse_header(header), options, lambda: engine, problems, to_gadgetron=to_gadgetron)
    return list(chain(iter(items)))


def of(kind, items):
    return [item for item in items if isinstance(item, kind)]


@pytest.mark.parametrize("name", SCANS)
def test_the_stock_gadgets_make_the_images_of_cinestream(name):
    header, items = scan(name)
    wanted = of(Image, through(header, items))
    arrays = of(ImageArray, through(header, items, emit="image_array"))
    assert [array.data.shape[4:] for array in arrays] == [(3, 1, 1)] * 2
    finished = list(Stock(header).finished(arrays))
    assert len(finished) == len(wanted) == 6
    values, expected = (np.stack(images) for images in ([v for _, v in finished], [i.data[0, 0] for i in wanted]))
    factor = values[0].max() / expected[0].max()
    assert np.abs(values - factor * expected).max() < 1e-5 * values.max(), "one factor for the whole scan"
    for (got, _), image in zip(finished, wanted, strict=True):
        for field in got.dtype.names:
            if field not in ("data_type", "matrix_size", "attribute_string_len"):
                np.testing.assert_array_equal(got[field], image.header[field], err_msg=field)


def test_an_array_has_what_the_generic_gadgets_read():
    header, items = scan("both")
    array, _ = of(ImageArray, through(header, items, emit="image_array"))
    assert array.data.dtype == np.complex64
    assert array.data.shape == (32, 30, 1, 1, 3, 1, 1)
    assert array.headers.shape == (3, 1, 1)
    assert (array.headers["matrix_size"] == [32, 30, 1]).all()
    assert (array.headers["data_type"] == 7).all()
    assert (array.headers["image_type"] == 1).all()
    assert (array.headers["channels"] == 1).all()
    assert array.headers["phase"].ravel().tolist() == [0, 1, 2]
    for number, text in enumerate(array.attributes):
        meta = meta_values(text)
        assert [float(value) for value in meta["encoding_FOV"]] == pytest.approx([360, 365.625, 8])
        assert [float(value) for value in meta["recon_FOV"]] == pytest.approx([360, 292.5, 8])
        assert meta["encoded_matrix"] == ["32", "30", "1"]
        assert meta["recon_matrix"] == ["64", "48", "1"]
        assert meta["sampling_limits_RO"] == ["0", "16", "31"]
        assert meta["sampling_limits_E1"][1] == "15"
        assert meta["GADGETRON_DataRole"] == ["Image"]
        assert meta["cinestream_frame"] == [str(number)]
        assert int(array.headers[number, 0, 0]["attribute_string_len"]) == len(text.encode())
        assert not [key for key in meta if "Window" in key or "ScaleRatio" in key], "the gadgets behind set these"


def test_values_are_those_of_the_reconstruction_unless_a_scale_is_set():
    header, items = scan()
    (plain, _), (scaled, _) = (of(ImageArray, through(header, items, emit="image_array", scale=s)) for s in (0.0, 7.0))
    np.testing.assert_allclose(scaled.data, 7 * plain.data, rtol=1e-6)

    class Keeps(StubEngine):
        def reconstruct(self, cine, options):
            self.last = super().reconstruct(cine, options)
            return self.last

    engine = Keeps()
    *_, last = of(ImageArray, through(header, items, engine, emit="image_array"))
    np.testing.assert_array_equal(last.data[:, :, 0, 0, :, 0, 0].transpose(2, 1, 0), engine.last.image)


def test_the_g_factor_is_an_array_of_its_own_that_stock_scaling_makes_hundredfold():
    header, items = scan()
    engine = Engine("cpu")
    settings = {"method": "cg_sense", "g_factor": True}
    wanted = of(Image, through(header, items, engine, **settings))
    arrays = of(ImageArray, through(header, items, engine, emit="image_array", **settings))
    assert [int(array.headers["image_series_index"].ravel()[0]) for array in arrays] == [1, 20, 1, 20]
    finished = list(Stock(header).finished(arrays))
    for (got, values), image in zip(finished, wanted, strict=True):
        if got["image_series_index"] == 20:
            np.testing.assert_allclose(values, image.data[0, 0], rtol=1e-4, atol=1e-3)


def test_complex_images_say_so_to_the_gadgets_behind():
    header, items = scan()
    array, _ = of(ImageArray, through(header, items, emit="image_array", output="complex"))
    assert (array.headers["image_type"] == 5).all()


def test_a_preview_comes_ahead_in_an_array_of_its_own():
    header, items = scan()
    came = of(ImageArray, through(header, items, emit="image_array", method="cg_sense", preview="zero_filled"))
    assert [int(array.headers["image_series_index"].ravel()[0]) for array in came] == [24, 1, 24, 1]


def test_stock_gadgets_on_both_sides():
    header, items = scan("phase oversampling")
    stock = Stock(header)
    made = list(stock.to_buffers(stock.accumulate(stock.prepared(items), "repetition", "slice")))
    wanted = np.stack([image.data[0, 0] for image in of(Image, through(header, items))])
    values = np.stack([v for _, v in stock.finished(of(ImageArray, through(header, made, emit="image_array")))])
    assert np.abs(values / values.max() - wanted / wanted.max()).max() < 1e-5


def test_no_images_make_no_array():
    assert list(join_series([])) == []


# --- handing on -------------------------------------------------------------------------------------------------------


def with_others(items):
    header, own = scan()
    made = of(Image, through(header, own))[0]
    image = Image(made.header, made.data, made.attributes)
    (array, *_) = of(ImageArray, through(header, own, emit="image_array"))
    return [*items[:2], image, array, *items[2:]]


@pytest.mark.parametrize("forward", ["none", "acquisitions", "images", "all"])
def test_what_is_handed_on(forward):
    header, items = scan()
    mixed = with_others(items)
    problems = Problems()
    came = through(header, mixed, forward=forward, problems=problems)
    for kinds, names in (((Readouts,), ("acquisitions", "all")), ((Image, ImageArray), ("images", "all"))):
        theirs = [item for item in mixed if isinstance(item, kinds)]
        same = [item for item in came if any(item is other for other in theirs)]
        assert list(map(id, same)) == (list(map(id, theirs)) if forward in names else [])
    assert of(Waveform, came) == of(Waveform, mixed)
    assert len(of(Image, came)) == 6 + (forward in ("images", "all"))
    texts = [problem.text for problem in problems]
    assert texts == (
        [] if forward in ("images", "all") else ["Image messages are not used; this pipeline works from readouts"]
    )


def test_buffers_and_buckets_are_acquisitions_too():
    header, items = scan()
    stock = Stock(header)
    gathered = list(stock.accumulate(stock.prepared(items), "", "slice"))
    buckets, made = [one.message() for one in gathered], list(stock.to_buffers(gathered))
    assert all(isinstance(one, ReconData) for one in made)
    for messages in (buckets, made):
        came = through(header, messages, forward="acquisitions")
        assert [item for item in came if not isinstance(item, Image)] == messages
        assert len(of(Image, came)) == 6


def test_others_than_a_gadgetron_get_images_and_a_message():
    header, items = scan()
    problems = Problems()
    came = through(header, items, to_gadgetron=False, problems=problems, emit="image_array", forward="all")
    wanted = through(header, items)
    assert [wire(item) for item in came] == [wire(item) for item in wanted]
    (problem,) = problems
    assert "emit=image_array and forward=all is for the gadgets of a Gadgetron" in problem.text
    assert not problem.damage


@pytest.mark.parametrize("door", ["client", "gadgetron"])
def test_the_server_knows_who_asks(door):
    from gadgets.connection.session import SessionOptions

    options = SessionOptions(overrides={"emit": "image_array", "forward": "acquisitions"})
    with serving(options=options) as server:
        answer = talk_scan(server, door)
    assert answer.complaints(door) == []
    assert answer.closed
    kinds = {type(message) for message in answer.messages}
    if door == "gadgetron":
        assert {ImageArray, Readouts, Waveform} <= kinds
        assert Image not in kinds
    else:
        assert Image in kinds
        assert not {ImageArray, Readouts, Waveform} & kinds
        assert any(isinstance(message, Text) and "emit=image_array" in message.text for message in answer.messages)
