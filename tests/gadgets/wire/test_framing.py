"""Messages cut out of a stream unread, against what writes and reads them."""

import io
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.wire import framing
from gadgets.wire.framing import EndOfStreamError, Frames, MessageId
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    SAMPLING_DESCRIPTION,
    WAVEFORM_HEADER,
    Close,
    Error,
    Query,
    Response,
    Text,
)
from recon_core.errors import ProtocolError
from tests.gadgets.wire.test_messages import IDS, ONE_OF_EACH, UNUSED, dribble, wire


def test_sizes_are_those_of_the_records():
    records = (ACQUISITION_HEADER, IMAGE_HEADER, WAVEFORM_HEADER, SAMPLING_DESCRIPTION)
    sizes = (framing.ACQUISITION_BYTES, framing.IMAGE_BYTES, framing.WAVEFORM_BYTES, framing.SAMPLING_BYTES)
    assert sizes == tuple(record.itemsize for record in records)
    assert {number: dtype.itemsize for number, dtype in IMAGE_DTYPES.items()} == framing.PIXEL_BYTES


def exhaust(frames):
    while True:
        frames.read()


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=IDS)
def test_a_message_ends_where_the_next_begins(message):
    whole = wire(message)
    for keep in (False, True):
        frames = Frames(io.BytesIO(whole + whole + wire(Close())).readinto, keep=keep)
        for _ in range(2):
            frame = frames.read()
            if frame.number == MessageId.ACQUISITION:  # a run of several, each a message
                count = len(message.headers)
                rest = b"".join(frames.read().data for _ in range(count - 1))
                assert frame.data + rest == (whole if keep else b"")
            else:
                assert frame.data == (whole if keep else b"")
            assert frame.closes == isinstance(message, Close)
        assert frames.read().closes
        with pytest.raises(EndOfStreamError):
            frames.read()


@pytest.mark.parametrize("unused", UNUSED.values(), ids=UNUSED)
def test_messages_that_nothing_uses_end_where_they_do(unused):
    frames = Frames(io.BytesIO(unused + wire(Close())).readinto, keep=True)
    assert frames.read().data == unused
    assert frames.read().closes


@given(
    which=st.lists(st.integers(0, len(ONE_OF_EACH) - 1), max_size=6), sizes=st.lists(st.integers(1, 400), min_size=1)
)
@settings(max_examples=50)
def test_any_messages_in_any_pieces(which, sizes):
    stream = wire(*(ONE_OF_EACH[number] for number in which), Close())
    frames, cut = Frames(dribble(stream, sizes), keep=True), b""
    while len(cut) < len(stream):
        cut += frames.read().data
    assert cut == stream
    assert frames.bytes_read == len(stream)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=IDS)
def test_a_stream_cut_anywhere_says_that_it_ended(message):
    whole = wire(message)
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        frames = Frames(io.BytesIO(whole[:end]).readinto)
        with pytest.raises(EndOfStreamError):
            exhaust(frames)


@pytest.mark.parametrize("message", [Text("µ of a slice"), Error("µ"), Response(7, "µ"), Query(3, "")])
def test_texts_are_read(message):
    frame = Frames(io.BytesIO(wire(message)).readinto, keep=True).read()
    if not isinstance(message, Query):
        assert frame.text == message.text


def test_what_is_kept_is_bounded_before_it_comes():
    forged = framing.U2.pack(MessageId.ERROR) + framing.U8.pack(1 << 62)
    with pytest.raises(ProtocolError, match="at most 4096 are believed"):
        Frames(io.BytesIO(forged).readinto, keep=True, most=4096).read()


@pytest.mark.parametrize("number", [0, 9, 1018, 1051, 65535])
def test_an_unknown_id_ends_the_stream(number):
    with pytest.raises(ProtocolError, match=f"unknown message id {number}"):
        Frames(io.BytesIO(framing.U2.pack(number) + bytes(100)).readinto).read()


@given(garbage=st.binary(max_size=1000), number=st.sampled_from([int(number) for number in MessageId]))
@settings(max_examples=200)
def test_garbage_never_ends_in_another_error(garbage, number):
    frames = Frames(io.BytesIO(framing.U2.pack(number) + garbage).readinto, keep=True, most=1 << 20)
    with pytest.raises(ProtocolError):
        exhaust(frames)


def test_the_import_is_light():
    program = "import sys, gadgets.wire.framing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"numpy", "defusedxml"} & {name.partition(".")[0] for name in done.stdout.split()}
