"""What a peer claims takes no memory and no time that its data do not deserve, and the next scan works."""

import struct
import time
import tracemalloc

import numpy as np
import pytest

from gadgets.connection.session import SessionOptions
from gadgets.wire.framing import MessageId
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, Header, Readouts, Text
from recon_core.off_grid.trajectory import spoke_positions
from tests.helpers.builders import header_xml, readouts
from tests.helpers.peers import StubEngine, assert_whole_scan, nothing_left, serving, talk

_MIB = 1 << 20
_MEMORY = 256 * _MIB
_NOISE = AcquisitionFlag.NOISE


def limits(**most):
    return {name: (0, value, 0) for name, value in {"kspace_encoding_step_1": 15, "phase": 0, **most}.items()}


SQUARE = {"encoded": (32, 16, 1), "recon": (32, 16, 1), "encoded_fov": (320, 160, 8), "recon_fov": (320, 160, 8)}
SQUARE["limits"] = limits()


@pytest.fixture(scope="module")
def shared():
    with serving(options=SessionOptions(memory_bytes=_MEMORY)) as server:
        yield server


@pytest.fixture
def server(shared):
    with nothing_left(shared):
        yield shared
        assert_whole_scan(shared)
        assert shared._resources.budget.used == 0
        assert shared._resources.queues.used == 0


def lines(count=16, **fields):
    return readouts(count, 4, 32, kspace_encode_step_1=np.arange(count), **fields)


def spokes(count, samples, frames=1):
    """Readouts of one coil through the centre of k-space, as many in every frame."""
    made = readouts(count, 1, samples, phase=np.arange(count) * frames // count, center_sample=samples // 2)
    angles = np.deg2rad(111.25 * np.arange(count))
    path = spoke_positions(angles, samples, samples // 2, (samples, samples), 1.0)
    made.headers["trajectory_dimensions"] = 2
    return Readouts(made.headers, made.data, path)


def radial(size):
    space = (size, size, 1), (300, 300, 8)
    return dict(zip(("encoded", "encoded_fov", "recon", "recon_fov"), space * 2, strict=True)) | {
        "trajectory": "radial",
        "limits": limits(phase=19),
    }


CLAIMS = {
    "matrix with one readout": (
        {
            "encoded": (4096, 4096, 1),
            "recon": (4096, 4096, 1),
            "encoded_fov": (400, 400, 8),
            "recon_fov": (400, 400, 8),
        },
        [readouts(1, 4, 4096)],
        "memory",
    ),
    "rows without lines": ({"encoded": (32, 4096, 1)}, [lines()], "at least one in 64 is needed"),
    "pixels without samples": (radial(1024), [spokes(30, 96)], "at least one for 64 is needed"),
    "images of few samples": (radial(512), [spokes(180, 512, 20)], "20 images and 1 coil maps"),
    "matrix beyond all scans": ({"encoded": (16384, 16, 1)}, [lines()], "4096 per axis"),
    "columns of one sample": ({"encoded": (4096, 16, 1)}, [readouts(2000, 64, 1)], "are left"),
    "coils of one sample": (SQUARE, [readouts(1, 65535, 1)], "at most 1024 are believed"),
    "coils of noise": (SQUARE, [readouts(2, 65535, 1, flags=[_NOISE]), lines()], ""),
    "recon matrix": ({**SQUARE, "recon": (4096, 4096, 1)}, [lines()], "recon space"),
    "recon matrix beyond all scans": ({**SQUARE, "recon": (16384, 16384, 1)}, [lines()], "4096 per axis"),
    "field of view": ({**SQUARE, "recon_fov": (320, 1e6, 8), "encoded_fov": (320, 1e-2, 8)}, [lines()], "recon space"),
    "field of view beyond all numbers": ({**SQUARE, "recon_fov": (320, 1e300, 8)}, [lines()], "which cannot be"),
    "field of view of nothing": ({**SQUARE, "encoded_fov": (1e-300, 160, 8)}, [lines()], "which cannot be"),
    "limits": ({**SQUARE, "limits": limits(phase=65535, average=65535)}, [lines()], ""),
    "limits and matrix": (
        {"encoded": (32, 4096, 1), "limits": limits(kspace_encoding_step_1=4095, phase=65535, average=65535)},
        [lines()],
        "",
    ),
    "frame counter": (SQUARE, [readouts(64, 4, 32, phase=np.arange(64) * 64)], ""),
    "frames of one line": (
        {**SQUARE, "encoded": (1024, 1024, 1)},
        [readouts(40, 8, 1024, phase=np.arange(40))],
        "are left",
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_header_and_readouts(server, claim):
    described, items, words = CLAIMS[claim]
    tracemalloc.start()
    begin = time.process_time()
    answer = talk(server, ConfigFile("zero_filled"), Header(header_xml(**described)), *items, Close())
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = " ".join(answer.texts)
    assert words in told, told
    assert "unexpected" not in told
    assert answer.closed
    assert peak < _MEMORY + 32 * _MIB
    assert seconds < 10


def test_readouts_that_never_complete_a_slice(server):
    """Lines of ever new slices, and lines that come again and again: what fits into the budget is kept, no more."""
    block = readouts(64, 16, 256, kspace_encode_step_1=np.zeros(64))
    header = header_xml(**{**SQUARE, "encoded": (256, 16, 1), "limits": limits(slice=65535)})
    tracemalloc.start()
    answer = talk(server, ConfigFile("zero_filled"), Header(header), *[block] * 100, Close())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * _MEMORY  # the stream of 213 MB itself is sent from this process
    assert any("are left out" in text and "such cases" in text for text in answer.complaints("client"))
    assert answer.images  # of what had room


def test_many_scans_share_the_memory(server):
    """A scan that holds half of the memory leaves the other half."""
    budget = server._resources.budget
    with budget.lent(_MEMORY // 2, "others"):
        assert_whole_scan(server)
    with budget.lent(_MEMORY, "others"):
        answer = talk(server, ConfigFile("zero_filled"), Header(header_xml(**SQUARE)), lines(), Close())
    assert any("0 MiB of 0.25 GiB are left" in text for text in answer.complaints("client"))


@pytest.mark.parametrize("element", ["<a/>", "<a>1</a>", "<userParameters/>"])
def test_header_of_many_elements(server, element):
    begin = time.process_time()
    header = header_xml(**SQUARE).replace("<experimental", element * (12 * _MIB // len(element)) + "<experimental")
    answer = talk(server, ConfigFile("zero_filled"), Header(header), lines(), Close())
    assert any("XML tags" in text for text in answer.complaints("client"))
    assert time.process_time() - begin < 5


def test_configuration_of_many_elements(server):
    from gadgets.wire.messages import ConfigText

    answer = talk(server, ConfigText("<configuration><stream>" + "<a/>" * _MIB + "</stream></configuration>"), Close())
    assert any("XML tags" in text for text in answer.complaints("client"))


LENGTHS = {
    "encodings of a bucket": struct.pack("<H", MessageId.BUCKET) + b"\0" * 104 + struct.pack("<Q", 1 << 21),
    "text": struct.pack("<HI", MessageId.HEADER, 2**32 - 1),
    "readout": struct.pack("<H", MessageId.ACQUISITION)
    + b"\0" * 34
    + struct.pack("<HHH", 65535, 0, 65535)
    + b"\0" * 400,
    "buffers": struct.pack("<HQ", MessageId.RECON_DATA, 1) + struct.pack("<QQQ", 2, 2**14, 2**14),
}


@pytest.mark.parametrize("claim", LENGTHS)
def test_lengths_take_memory_as_the_bytes_come(server, claim):
    tracemalloc.start()
    opening = [ConfigFile("zero_filled"), Header(header_xml(**SQUARE))]
    answer = talk(server, *opening[: 1 if claim == "text" else 2], tail=LENGTHS[claim], end=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.complaints("client")
    assert peak < 32 * _MIB


@pytest.mark.parametrize(
    "value", [{"samples": 1000}, {"sampler_steps": 10000}, {"iterations": 1000}, {"map_neighbourhood": 101}]
)
def test_costly_parameters_are_for_the_operator(server, value):
    parameters = Text(f'{{"parameters": {str(value).replace(chr(39), chr(34))}}}')
    answer = talk(server, ConfigFile("zero_filled"), Header(header_xml(**SQUARE)), parameters, lines(), Close())
    (name,) = value
    assert any(f"setting '{name}' is {value[name]}; a peer may ask for" in text for text in answer.texts)
    assert answer.images
    assert answer.complaints("client") == []


def test_costly_configurations_are_for_the_operator(tmp_path):
    from gadgets.wire.messages import ConfigText

    document = "<configuration><stream><external><connect port='9'/><configuration><method>kt_sense</method>"
    document += "<kt_rounds>100</kt_rounds></configuration></external></stream></configuration>"
    (tmp_path / "long.xml").write_text(document.replace("kt_sense", "zero_filled"), encoding="utf-8")
    with serving(StubEngine(), SessionOptions(pipelines=(tmp_path,), overrides={"iterations": "900"})) as server:
        answer = talk(server, ConfigText(document), Header(header_xml(**SQUARE)), lines(), Close())
        assert any("'kt_rounds' is 100; a peer may ask for 20 at most" in text for text in answer.complaints("client"))
        answer = talk(server, ConfigFile("long"), Header(header_xml(**SQUARE)), lines(), Close())
        assert answer.complaints("client") == []
