"""The gadgets that a Gadgetron 4.7.2 has before and behind a reconstruction, as far as a 2-D Cartesian scan meets them.

Written from the description of what they do, one readout after another, and apart from
`gadgets.preparation.readouts` and `gadgets.slices`, so that an error there cannot cancel out. What they do wrong
they do wrong here too.
"""

import math
import struct
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

import numpy as np

from gadgets.wire.containers import Bucket, BufferedData, ReconData
from gadgets.wire.messages import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, AcquisitionFlag, Readouts, Waveform

COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set", "segment")
STATS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "phase", "contrast", "repetition", "set", "segment")
STATS = (*STATS, "average")


@dataclass
class Line:
    """One readout: its header and its samples ``(coil, sample)``."""

    header: np.void
    data: np.ndarray

    def has(self, flag):
        return bool(int(self.header["flags"]) & int(flag.bit))

    def counter(self, name):
        return int(self.header["idx"][name]) if name else 0


@dataclass
class Gathered:
    """What AcquisitionAccumulateTrigger emits at once."""

    data: list = field(default_factory=list)
    reference: list = field(default_factory=list)
    waveforms: list = field(default_factory=list)

    def message(self):
        sides = [tuple(Readouts(_array([line]), line.data[None]) for line in side) for side in self._sides()]
        stats = [(_stats(side),) if side else () for side in self._sides()]
        return Bucket(*sides, *stats, tuple(self.waveforms))

    def _sides(self):
        return self.data, self.reference


class Stock:
    """Stock gadgets for one scan, by its header."""

    def __init__(self, header):
        root = ET.fromstring(header)
        for node in root.iter():
            node.tag = node.tag.rpartition("}")[2]
        encoding = root.find("encoding")
        self.matrix, self.fov = {}, {}
        for space in ("encodedSpace", "reconSpace"):
            self.matrix[space] = [int(encoding.findtext(f"{space}/matrixSize/{axis}")) for axis in "xyz"]
            self.fov[space] = [float(encoding.findtext(f"{space}/fieldOfView_mm/{axis}")) for axis in "xyz"]
        lines = encoding.find("encodingLimits/kspace_encoding_step_1")
        self.first, self.center, self.last = (int(lines.findtext(name)) for name in ("minimum", "center", "maximum"))
        self.parallel = encoding.find("parallelImaging") is not None
        self.calibration = encoding.findtext("parallelImaging/calibrationMode", "")
        place = "acquisitionSystemInformation/relativeReceiverNoiseBandwidth"
        self.bandwidth = float(root.findtext(place, "0.793"))

    # --- one readout at a time ----------------------------------------------------------------------------------------

    def prepared(self, items):
        """NoiseAdjust, AsymmetricEchoAdjustRO, RemoveROOversampling."""
        return self.remove_oversampling(self.asymmetric_echo(self.noise_adjust(lines_of(items))))

    def noise_adjust(self, items):
        noise, whitening = [], None
        for item in items:
            if isinstance(item, Line) and item.has(AcquisitionFlag.NOISE):
                noise.append(item)
                continue
            if isinstance(item, Line) and noise and len(item.data) == len(noise[0].data):  # others pass as they are
                if whitening is None:
                    whitening = self._whitening(noise, float(item.header["sample_time_us"]))
                item = Line(item.header, (item.data.T.astype(complex) @ whitening).T.astype(np.complex64))
            yield item

    def _whitening(self, noise, dwell):
        samples = np.concatenate([line.data.T for line in noise]).astype(complex)  # (sample, channel)
        covariance = samples.conj().T @ samples / (len(samples) - 1)
        upper = np.linalg.cholesky(covariance).conj().T
        ratio = dwell / float(noise[0].header["sample_time_us"]) * self.bandwidth
        return np.linalg.inv(upper) * math.sqrt(2 * ratio)

    def asymmetric_echo(self, items):
        full = self.matrix["encodedSpace"][0]
        for item in items:
            if isinstance(item, Line):
                header, samples = item.header, item.data.shape[1]
                center = int(header["center_sample"])
                if samples < full and 2 * center != samples and center < samples:
                    missing = np.zeros((len(item.data), full - samples), np.complex64)
                    before = 2 * center < samples
                    item.data = np.concatenate([missing, item.data] if before else [item.data, missing], axis=1)
                    header["discard_pre" if before else "discard_post"] = full - samples
                    header["number_of_samples"], header["center_sample"] = full, full // 2
            yield item

    def remove_oversampling(self, items):
        ratio = self.fov["encodedSpace"][0] / self.fov["reconSpace"][0]
        for item in items:
            if isinstance(item, Line) and ratio > 1:
                samples = item.data.shape[1]
                kept = int(samples / ratio)
                profile = _inverse(item.data, 1)[:, samples // 2 - kept // 2 :][:, :kept]
                item.data = _forward(profile, 1).astype(np.complex64)
                item.header["number_of_samples"] = kept
                for name in ("center_sample", "discard_pre", "discard_post"):
                    item.header[name] = int(int(item.header[name]) / ratio)
            yield item

    # --- many readouts ------------------------------------------------------------------------------------------------

    def accumulate(self, items, trigger="", sorting=""):
        """AcquisitionAccumulateTrigger with a counter as trigger dimension, or none."""
        buckets, waveforms, before = {}, [], None
        for item in items:
            if isinstance(item, Waveform):
                waveforms.append(item)
            elif not item.has(AcquisitionFlag.NOISE):
                now = item.counter(trigger)
                if before is not None and now != before:
                    yield from self._emit(buckets, waveforms)
                    buckets, waveforms = {}, []
                before = now
                bucket = buckets.setdefault(item.counter(sorting), Gathered())
                calibration = item.has(AcquisitionFlag.PARALLEL_CALIBRATION)
                if calibration or item.has(AcquisitionFlag.CALIBRATION_AND_IMAGING):
                    bucket.reference.append(item)
                if not calibration and not item.has(AcquisitionFlag.PHASE_CORRECTION):
                    bucket.data.append(item)
        yield from self._emit(buckets, waveforms)

    @staticmethod
    def _emit(buckets, waveforms):
        for number, key in enumerate(sorted(buckets)):
            buckets[key].waveforms = waveforms if number == 0 else []
            yield buckets[key]

    def to_buffers(self, buckets, n="phase", s="set", *, split_slices=True, ignore_segment=True):
        """BucketToBuffer."""
        fixed = [name for name in COUNTERS if name not in (n, s)]
        if not split_slices:
            fixed.remove("slice")
        if ignore_segment and "segment" in fixed:
            fixed.remove("segment")
        for bucket in buckets:
            outputs = {}
            for side, lines in enumerate((bucket.data, bucket.reference)):
                for line in lines:
                    key = tuple(line.counter(name) for name in fixed)
                    pair = outputs.setdefault(key, [None, None])
                    if pair[side] is None:
                        pair[side] = self._allocate(line, lines, n, s, split_slices, is_reference=side == 1)
                    self._store(pair[side], line, n, s, split_slices)
            for data, reference in outputs.values():
                bit = (_empty() if data is None else data["buffer"], None if reference is None else reference["buffer"])
                yield ReconData((bit,))

    def _allocate(self, line, lines, n, s, split_slices, *, is_reference):
        header, rows = line.header, self.matrix["encodedSpace"][1]
        samples, pre, post = (int(header[name]) for name in ("number_of_samples", "discard_pre", "discard_post"))
        shift = rows // 2 - self.center
        if self.parallel:
            columns = samples
        else:
            columns, rows = samples - pre - post, self.last - self.first + 1
        if is_reference and self.calibration in ("separate", "external"):
            steps = [one.counter("kspace_encode_step_1") for one in lines]
            shift, rows = -min(steps), max(steps) - min(steps) + 1

        def extent(name):
            values = [one.counter(name) for one in lines]
            return max(values) - min(values) + 1 if name else 1

        sizes = extent(n), extent(s), 1 if split_slices else extent("slice")
        sampling = np.zeros((), SAMPLING_DESCRIPTION)
        for ours, theirs in (("encoded", "encodedSpace"), ("recon", "reconSpace")):
            sampling[f"{ours}_fov"], sampling[f"{ours}_matrix"] = self.fov[theirs], self.matrix[theirs]
        sampling["encoded_fov"][0], sampling["encoded_matrix"][0] = self.fov["reconSpace"][0], samples
        middle = int(sampling["encoded_matrix"][1]) // 2
        limits = [
            (pre, columns // 2, columns - post - 1),
            (max(self.first + shift, 0), middle, self.last + shift),
            (0, 0, 0),
        ]
        sampling["limits"] = np.array(limits, sampling["limits"].dtype)
        buffer = BufferedData(
            np.zeros((columns, rows, 1, len(line.data), *sizes), np.complex64, order="F"),
            np.zeros((rows, 1, *sizes), ACQUISITION_HEADER, order="F"),
            sampling[()],
        )
        return {"buffer": buffer, "shift": shift}

    def _store(self, target, line, n, s, split_slices):
        buffer, header = target["buffer"], line.header
        step = line.counter("kspace_encode_step_1")
        if not self.first <= step <= self.last:
            raise ValueError("Acquired line is outside the encoding limits")
        columns, rows = buffer.data.shape[:2]
        e1 = step + target["shift"]
        if not 0 <= e1 < rows:
            return  # dropped with a warning in its log
        samples, center, pre, post = (
            int(header[name]) for name in ("number_of_samples", "center_sample", "discard_pre", "discard_post")
        )
        straight = samples == columns and (center == columns // 2 or center >= samples)
        offset = pre if straight else columns // 2 - center
        n, s, loc = (line.counter(name) for name in (n, s, "" if split_slices else "slice"))
        place = tuple(min(value, size - 1) for value, size in zip((n, s, loc), buffer.data.shape[4:], strict=True))
        values = line.data[:, pre : samples - post].T
        buffer.data[(slice(None), e1, 0, slice(values.shape[1], None), *place)] = 1e9  # memory that is not set
        buffer.data[(slice(offset, offset + len(values)), e1, 0, slice(values.shape[1]), *place)] = values
        buffer.headers[(e1, 0, *place)] = header

    # --- behind the reconstruction ------------------------------------------------------------------------------------

    def finished(self, arrays, scale=None):
        """FieldOfViewAdjustment, ImageArrayScaling (automatic), ImageArraySplit, ComplexToFloat: ``(y, x)`` each."""
        for array in arrays:
            meta = meta_values(array.attributes[0])
            assert len(array.attributes) == array.headers.size
            for name in ("encoding", "sampling_limits_RO", "sampling_limits_E1", "sampling_limits_E2"):
                assert name in meta
            data = array.data
            for axis in (0, 1):
                encoded, wanted = (float(meta[name][axis]) for name in ("encoding_FOV", "recon_FOV"))
                data = _resized(data, axis, round(data.shape[axis] * wanted / encoded))
                if data.shape[axis] != self.matrix["reconSpace"][axis]:
                    grown = _resized(_forward(data, axis), axis, self.matrix["reconSpace"][axis])
                    data = _inverse(grown, axis) * math.sqrt(grown.shape[axis] / data.shape[axis])
            if meta["GADGETRON_DataRole"] == ["Gfactor"]:
                factor = 100.0
            else:
                scale = factor = scale or _automatic_scale(np.abs(data).max())
            for index in np.ndindex(*array.headers.shape[::-1]):
                loc, s, n = index
                assert array.headers[n, s, loc]["image_type"] == 1
                yield array.headers[n, s, loc], np.abs(data[:, :, 0, 0, n, s, loc]).T * factor


def lines_of(items):
    """Readouts one by one, free to be changed; waveforms as they are."""
    for item in items:
        if isinstance(item, Readouts):
            yield from (Line(item.headers[i].copy(), np.array(item.data[i])) for i in range(len(item)))
        else:
            yield item


def as_messages(items):
    """Single lines as the acquisition messages that a Gadgetron would hand on."""
    for item in items:
        yield Readouts(_array([item]), item.data[None]) if isinstance(item, Line) else item


def recon_data_bytes(message):
    """A RECON_DATA message on the wire."""
    parts = [struct.pack("<HQ", 1023, len(message.bits))]
    for data, reference in message.bits:
        parts += [_buffer_bytes(data), struct.pack("<?", reference is not None)]
        parts += [] if reference is None else [_buffer_bytes(reference)]
    return b"".join(parts)


def _buffer_bytes(buffered):
    absent = b"\0"  # no trajectory, no density
    sampling = np.zeros((), SAMPLING_DESCRIPTION)
    for name in SAMPLING_DESCRIPTION.names:
        sampling[name] = buffered.sampling[name]
    return b"".join([_array_bytes(buffered.data), absent, absent, _array_bytes(buffered.headers), sampling.tobytes()])


def _array_bytes(array):
    if not array.size:
        return struct.pack("<Q", 0)
    return struct.pack(f"<{array.ndim + 1}Q", array.ndim, *array.shape) + array.tobytes(order="F")


def meta_values(text):
    """Values of every name of an ``<ismrmrdMeta>``."""
    return {
        node.findtext("name"): [value.text for value in node.findall("value")]
        for node in ET.fromstring(text.encode()).findall("meta")
    }


def _empty():
    nothing = np.empty(0, np.complex64)
    return BufferedData(nothing, np.empty(0, ACQUISITION_HEADER), np.zeros((), SAMPLING_DESCRIPTION)[()])


def _array(lines):
    headers = np.zeros(len(lines), ACQUISITION_HEADER)
    for i, line in enumerate(lines):
        headers[i] = line.header
    return headers


def _stats(lines):
    return tuple(tuple(sorted({line.counter(name) for line in lines})) for name in STATS)


def _forward(values, axis):
    spectrum = np.fft.fft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(spectrum, axes=axis)


def _inverse(values, axis):
    image = np.fft.ifft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(image, axes=axis)


def _resized(values, axis, size):
    """Cut or pad with zeros around the centre ``n // 2``."""
    before = values.shape[axis]
    source = np.arange(size) - size // 2 + before // 2
    inside = (source >= 0) & (source < before)
    out = np.take(values, source.clip(0, before - 1), axis)
    return out * inside.reshape([-1 if i == axis else 1 for i in range(values.ndim)])


def _automatic_scale(brightest):
    if not 64 <= brightest <= 4095:
        return 2048 / brightest
    factor = 4.0
    while brightest * factor > 4095 and factor >= 2:
        factor /= 2
    return factor
