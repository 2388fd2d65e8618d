"""Whatever order, limits, flags and counters a sender chooses: the frames of the plain description, nothing lost."""

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.slices.buffers import SliceBuffers
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag
from tests.helpers.builders import encoding_xml, header_xml, readouts

LINES, COLUMNS, COILS = 8, 4, 2
LAST, END = AcquisitionFlag.LAST_IN_SLICE.bit, AcquisitionFlag.LAST_IN_MEASUREMENT.bit
LOOPS = ("set", "repetition", "average", "slice", "frame", "segment")
LIMITS = ("exact", "absent", "small", "large", "shifted")
FLAGS = ("none", "frame", "slice", "segment", "every", "end", "end of slice", "end of frame")


@dataclass(frozen=True)
class Plan:
    """A scan as a sender may count it."""

    order: tuple[str, ...] = LOOPS
    sizes: tuple[int, ...] = (1, 1, 1, 2, 3, 2)  # as LOOPS
    first: int = 0  # value at which counters but that of the line begin
    frames_by: str = "phase"
    undersampled: bool = False
    accelerated: bool = True  # the header says so
    limits: tuple[tuple[str, str], ...] = ()  # what is not exact
    flags: str = "none"

    def limit(self, name):
        return dict(self.limits).get(name, "exact")


def positions(plan):
    """Values of all loops and the line of every readout, in the order of the scan."""
    sizes = dict(zip(LOOPS, plan.sizes, strict=True))
    for values in itertools.product(*(range(sizes[name]) for name in plan.order)):
        at = dict(zip(plan.order, values, strict=True))
        lines = [
            line for line in range(LINES) if not plan.undersampled or line % 2 == at["frame"] % 2 or line in (3, 4)
        ]
        each = -(-len(lines) // sizes["segment"])
        for line in lines[at["segment"] * each : (at["segment"] + 1) * each]:
            yield {**at, "line": line}


def counters(plan, at):
    """Header counters of a readout."""
    values = {name: at[name] + plan.first for name in ("set", "average", "slice", "segment")}
    values["repetition"] = at["repetition"] + plan.first
    values[plan.frames_by] = at["frame"] + plan.first
    return {**values, "kspace_encode_step_1": at["line"]}


def limit(kind, size, first, center=0):
    """(minimum, maximum, center) of a counter with `size` values; None where the header is silent."""
    last = first + size - 1
    return {
        "exact": (first, last, center),
        "absent": None,
        "small": (first, max(first, last - 1), center),
        "large": (first, last + 3, center),
        "shifted": (first + 2, last + 2, center + 2),
    }[kind]


def header_of(plan):
    sizes = dict(zip(LOOPS, plan.sizes, strict=True))
    spans = {name: sizes[name] for name in ("set", "average", "slice", "segment", "repetition")}
    spans["phase"] = 1
    spans[plan.frames_by] = sizes["frame"]
    limits = {name: limit(plan.limit(name), size, plan.first) for name, size in spans.items()}
    if plan.frames_by == "repetition" and plan.limit("phase") != "absent":
        limits["phase"] = (0, 3 if plan.limit("phase") == "large" else 0, 0)
    limits["kspace_encoding_step_1"] = limit(plan.limit("line"), LINES, 0, LINES // 2)
    factor = 2 if plan.undersampled and plan.accelerated else 1
    step = f"<kspace_encoding_step_1>{factor}</kspace_encoding_step_1>"
    extra = f"<parallelImaging><accelerationFactor>{step}</accelerationFactor></parallelImaging>"
    space = (COLUMNS, LINES, 1)
    said = {name: values for name, values in limits.items() if values is not None}
    return parse_header(header_xml(encoding_xml(encoded=space, recon=space, limits=said, extra=extra)))


def flag_positions(plan, places):
    """Positions of the last readout of what the flags end."""
    ends = {
        "frame": ("set", "repetition", "slice", "frame"),
        "slice": ("set", "repetition", "slice"),
        "segment": ("set", "repetition", "average", "slice", "frame", "segment"),
        "end": (),
        "end of slice": ("set", "repetition", "slice"),
        "end of frame": ("set", "repetition", "slice", "frame"),
    }[plan.flags]
    return sorted({tuple(at[name] for name in ends): i for i, at in enumerate(places)}.values())


def scan_of(plan):
    """Readouts, and the places of them."""
    places = list(positions(plan))
    columns = [counters(plan, at) for at in places]
    values = {name: [one[name] for one in columns] for name in columns[0]}
    block = readouts(len(places), COILS, COLUMNS, **values)
    if plan.flags == "every":
        block.headers["flags"] |= LAST
    elif plan.flags != "none":
        block.headers["flags"][flag_positions(plan, places)] |= END if plan.flags.startswith("end") else LAST
    return block, places


def expected_frames(plan, block, places):
    """K-space ``(coil, ky, kx)`` by set, repetition, slice and frame: means over the averages."""
    sums = {}
    for data, at in zip(block.data, places, strict=True):
        own = (at["set"], 0 if plan.frames_by == "repetition" else at["repetition"], at["slice"], at["frame"])
        lines = sums.setdefault(own, {})
        lines.setdefault(at["line"], []).append(data)
    frames = {}
    for own, lines in sums.items():
        frames[own] = np.zeros((COILS, LINES, COLUMNS), complex)
        for line, several in lines.items():
            frames[own][:, line] = np.mean(several, axis=0)
    return frames


def found_frames(plan, block, cuts):
    """The same from the buffers, with the problems and what did not come."""
    problems = Problems()
    buffers = SliceBuffers(header_of(plan), problems, Settings())
    edges = [0, *sorted(cuts), len(block)]
    left = [one for begin, end in itertools.pairwise(edges) if end > begin for one in buffers.add(block[begin:end])]
    frames = {}
    for complete in [*left, *buffers.flush()]:
        for frame, kspace in zip(complete.frames.tolist(), complete.cine.kspace, strict=True):
            series = 0 if plan.frames_by == "repetition" else complete.key.repetition - plan.first
            own = (complete.key.set - plan.first, series, complete.key.slice - plan.first, frame - plan.first)
            assert own not in frames, "every frame once"
            frames[own] = kspace
    return frames, problems, buffers.absent()


def cannot_be_told(plan):
    """A limit of one that is wrong, of a counter that runs on after the stream went on with other slices."""
    sizes = dict(zip(LOOPS, plan.sizes, strict=True))
    averages = plan.limit("average") == "small" and sizes["average"] > 1
    phases = plan.limit("phase") == "small" and sizes["frame"] == 2 and sizes["repetition"] > 1
    # half of the lines with a limit of one too few are as many as the first of two segments brings
    lines = plan.limit("line") == "small" and plan.undersampled and plan.accelerated and sizes["segment"] > 1
    return (averages or phases or lines) and max(sizes[name] for name in ("slice", "set", "repetition")) > 1


PLANS = (
    st.builds(
        Plan,
        order=st.permutations(LOOPS).map(tuple),
        sizes=st.tuples(*(st.integers(1, most) for most in (2, 2, 2, 3, 5, 3))),
        first=st.sampled_from([0, 0, 1, 3]),
        frames_by=st.sampled_from(["phase", "phase", "repetition"]),
        undersampled=st.booleans(),
        accelerated=st.booleans(),
        limits=st.dictionaries(
            st.sampled_from(["set", "repetition", "average", "slice", "segment", "phase", "line"]),
            st.sampled_from(LIMITS),
        ).map(lambda kinds: tuple(sorted(kinds.items()))),
        flags=st.sampled_from(FLAGS),
    )
    .filter(lambda plan: plan.sizes[1] == 1 or (plan.frames_by == "phase" and plan.sizes[4] > 1))
    .filter(lambda plan: plan.frames_by == "phase" or plan.sizes[4] > 1)
)


@settings(max_examples=250)
@given(PLANS.filter(lambda plan: not cannot_be_told(plan)), st.data())
@example(Plan(sizes=(1, 1, 1, 1, 6, 1), limits=tuple((name, "absent") for name in (*LOOPS, "phase", "line"))), None)
@example(Plan(limits=(("phase", "small"),), sizes=(1, 1, 1, 1, 4, 1)), None)
@example(Plan(limits=(("average", "small"),), sizes=(1, 1, 2, 1, 4, 1)), None)
@example(Plan(limits=(("line", "small"),), sizes=(1, 1, 1, 2, 4, 1)), None)
@example(Plan(first=1, sizes=(1, 1, 1, 2, 4, 1)), None)
@example(Plan(order=("set", "repetition", "average", "frame", "slice", "segment"), limits=(("phase", "small"),)), None)
@example(
    Plan(
        order=("set", "repetition", "frame", "slice", "average", "segment"),
        sizes=(1, 1, 1, 2, 3, 1),
        frames_by="repetition",
        limits=(("repetition", "small"),),
    ),
    None,
)
def test_any_scan_gives_the_frames_of_the_plain_description(plan, data):
    block, places = scan_of(plan)
    cuts = data.draw(st.sets(st.integers(1, len(block) - 1), max_size=5)) if data and len(block) > 1 else set()
    expected = expected_frames(plan, block, places)
    found, problems, absent = found_frames(plan, block, cuts)
    assert problems.damage == []
    assert absent.gaps == []
    assert not (absent.promised and absent.cut_short)
    assert found.keys() == expected.keys()
    for own, kspace in expected.items():
        np.testing.assert_allclose(found[own], kspace, atol=1e-6)
