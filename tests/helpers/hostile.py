"""Scans and sessions of a hostile peer, drawn from a seed: every number, flag, order and length may be wrong."""

import re
import socket
import struct
import time

import numpy as np

from gadgets.wire.containers import Bucket
from gadgets.wire.messages import (
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Query,
    Readouts,
    Text,
)
from tests.helpers.builders import header_xml, readouts, waveform
from tests.helpers.peers import BARE, wire

NUMBERS = ("0", "1", "-1", "2", "7", "16", "4096", "65535", "65536", "1e308", "-1e308", "1e-308", "nan", "inf", "", "x")
VALUES = (0.0, 1.0, np.nan, np.inf, 1e38, 1e-38, 1e-45, -1.0)
METHODS = ("zero_filled", "cg_sense", "grappa", "low_rank_sparse", "kt_sense")
COUNTERS = ("kspace_encode_step_1", "phase", "slice", "repetition", "set", "contrast", "segment", "average")
FIELDS = ("scan_counter", "center_sample", "discard_pre", "discard_post", "encoding_space_ref", "sample_time_us")
STAMPS = ("acquisition_time_stamp", "physiology_time_stamp")
SETTINGS = (
    {},
    {"gating": "retrospective"},
    {"realtime": "sliding"},
    {"realtime": "fixed", "lines_per_frame": 3},
    {"virtual_coils": 1},
    {"output": "complex", "scale": 1e12},
    {"units": "snr", "g_factor": True},
    {"partial_fourier": "pocs", "kspace_filter": 1.0},
    {"extra_series": "zero_filled,difference", "preview": "zero_filled"},
    {"maps": "walsh"},
    {"maps": "espirit"},
    {"maps": "inati"},
    {"gating": "retrospective", "trigger_source": "ecg"},
    {"series_by": "slice", "orientation": "flipped"},
)


def header(generator):
    """A header with some numbers of it replaced."""
    rows, columns = (int(generator.choice([1, 2, 8, 12])) for _ in range(2))
    most = {name: (0, int(generator.choice([0, 1, 3, 60000])), 0) for name in ("phase", "slice", "average", "segment")}
    text = header_xml(
        encoded=(2 * columns, rows, 1),
        recon=(columns, rows, 1),
        limits={"kspace_encoding_step_1": (0, rows - 1, rows // 2), **most},
        extra=str(
            generator.choice(["", "<parallelImaging><calibrationMode>separate</calibrationMode></parallelImaging>"])
        ),
        before="<userParameters><userParameterLong><name>RetroGatedImages</name><value>5</value></userParameterLong>"
        "</userParameters>" * int(generator.integers(2)),
    )
    for _ in range(int(generator.choice([0, 0, 1, 2]))):
        found = list(re.finditer(r"(?<=>)[\d.]+(?=<)", text))
        one = found[int(generator.integers(len(found)))]
        text = text[: one.start()] + str(generator.choice(NUMBERS)) + text[one.end() :]
    return text


def items(generator):
    """Runs of readouts and waveforms."""
    coils, samples = int(generator.choice([1, 2, 3, 5])), int(generator.choice([1, 2, 16, 24]))
    made = []
    if generator.integers(2):
        noise = readouts(40, coils, 16, flags=[AcquisitionFlag.NOISE], seed=int(generator.integers(99)))
        if not generator.integers(3):
            with np.errstate(over="ignore", invalid="ignore"):
                noise.data[:, generator.integers(coils)] *= np.float32(generator.choice(VALUES))
        made.append(noise)
    for _ in range(int(generator.integers(1, 5))):
        count = int(generator.choice([1, 5, 12, 30]))
        block = readouts(count, coils, samples, seed=int(generator.integers(99)))
        block.headers["idx"]["kspace_encode_step_1"] = np.arange(count) % 12
        block.headers["idx"]["phase"] = np.arange(count) // 12
        _damage(block, generator)
        made.append(block[generator.permutation(count)] if not generator.integers(4) else block)
        if not generator.integers(4):
            made.append(waveform(time_stamp=int(generator.integers(2**31)), seed=1))
    return made


def _damage(block, generator):
    """Change some numbers of a run of readouts."""
    for _ in range(int(generator.choice([0, 1, 1, 3]))):
        which = slice(int(generator.integers(len(block))), None)
        kind = int(generator.integers(5))
        if kind == 0:
            block.headers["idx"][str(generator.choice(COUNTERS))][which] = generator.choice([0, 1, 7, 300, 65535])
        elif kind == 1:
            name = str(generator.choice(FIELDS))
            block.headers[name][which] = generator.choice([0, 1, 9, 65535])
        elif kind == 2:
            block.headers[str(generator.choice(STAMPS))][which] = generator.integers(2**32, dtype=np.uint32)
        elif kind == 3:
            block.headers["flags"][which] |= np.uint64(1 << int(generator.integers(52)))
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                block.data[which] *= np.float32(generator.choice(VALUES))


def _bucket(made):
    """The same readouts as a Gadgetron's trigger gathers them."""
    runs = [item for item in made if isinstance(item, Readouts)]
    single = tuple(run[i : i + 1] for run in runs for i in range(len(run)))
    return Bucket(single, single[:3], (((0, 1),) * 9,), (((0,),) * 9,), ())


def session(generator):
    """The bytes of a whole session, whole or damaged."""
    configuration = [ConfigFile("zero_filled"), ConfigText(BARE), ConfigFile("cg_sense"), ConfigFile("x" * 1000)]
    data = items(generator)
    if not generator.integers(5):
        data = [_bucket(data)]
    messages = [configuration[int(generator.integers(4))], Header(header(generator)), *data, Close()]
    if not generator.integers(4):
        messages.insert(2, Text('{"parameters": {"scale": 1e30, "samples": 1000, "a\\u001b": []}}'))
    if not generator.integers(8):
        messages = [messages[i] for i in generator.permutation(len(messages))]
    if not generator.integers(8):
        messages.insert(int(generator.integers(len(messages))), Query(1, "gadgetron::info::version"))
    stream = bytearray(wire(*messages))
    for _ in range(int(generator.choice([0, 0, 1, 4]))):
        begin = int(generator.integers(len(stream)))
        kind = int(generator.integers(4))
        if kind == 0:
            stream[begin] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del stream[begin : begin + int(generator.integers(1, 200))]
        elif kind == 2:
            stream[begin:begin] = generator.bytes(int(generator.integers(1, 50)))
        else:
            stream[begin : begin + 8] = struct.pack("<Q", int(generator.integers(2**63)))
        if not stream:
            break
    return bytes(stream)


def attack(address, generator, patience=20.0):
    """Talk to a server in one of many rude ways, and give what it said."""
    stream, heard = session(generator), bytearray()
    family = socket.AF_INET
    with socket.socket(family) as peer:
        peer.settimeout(patience)
        peer.connect(address)
        how = int(generator.integers(6))
        try:
            if how == 0:  # in small pieces
                for begin in range(0, len(stream), max(1, len(stream) // 20)):
                    peer.sendall(stream[begin : begin + max(1, len(stream) // 20)])
                    time.sleep(0.001)
            elif how == 1:  # gone in the middle
                peer.sendall(stream[: len(stream) // 2])
                if generator.integers(2):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            else:
                peer.sendall(stream)
            if how == 2:  # gone before the images
                return b""
            peer.shutdown(socket.SHUT_WR)
            if how == 3:  # deaf for a while
                time.sleep(0.1)
            while block := peer.recv(1 << 16):
                heard += block
        except TimeoutError:
            raise
        except OSError:  # the server has closed the connection
            pass
    return bytes(heard)


def readout_count(made):
    """How many readouts there are among messages."""
    return sum(len(item) for item in made if isinstance(item, Readouts))
