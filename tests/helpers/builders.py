"""Small scans for tests: the XML header of a 2-D cine scan, and readouts with chosen counters and random data."""

import numpy as np

from gadgets.wire.messages import ACQUISITION_HEADER, WAVEFORM_HEADER, Readouts, Waveform, flag_mask

NAMESPACE = "http://www.ismrm.org/ISMRMRD"


def space_xml(name, matrix, field_of_view):
    """<encodedSpace> or <reconSpace>; `matrix` and `field_of_view` are (x, y, z)."""
    sizes = "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", matrix, strict=True))
    lengths = "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", field_of_view, strict=True))
    return f"<{name}><matrixSize>{sizes}</matrixSize><fieldOfView_mm>{lengths}</fieldOfView_mm></{name}>"


def encoding_xml(
    encoded=(32, 16, 1),
    recon=(16, 16, 1),
    encoded_fov=(400.0, 200.0, 8.0),
    recon_fov=(200.0, 200.0, 8.0),
    limits=None,
    trajectory="cartesian",
    extra="",
):
    """One <encoding>; `limits` maps counter names to (minimum, maximum, center)."""
    if limits is None:
        limits = {"kspace_encoding_step_1": (0, encoded[1] - 1, encoded[1] // 2), "phase": (0, 3, 0)}
    inner = "".join(
        f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{centre}</center></{name}>"
        for name, (low, high, centre) in limits.items()
    )
    return (
        f"<encoding>{space_xml('encodedSpace', encoded, encoded_fov)}{space_xml('reconSpace', recon, recon_fov)}"
        f"<encodingLimits>{inner}</encodingLimits><trajectory>{trajectory}</trajectory>{extra}</encoding>"
    )


def header_xml(*encodings, version=None, before="", after="", **encoding):
    """An ISMRMRD header of the given <encoding> elements, or of one made by `encoding_xml(**encoding)`.

    `before` and `after` are further elements around the encodings, `version` the content of <version>.
    """
    body = "".join(encodings) or encoding_xml(**encoding)
    number = "" if version is None else f"<version>{version}</version>"
    field = "<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz>"
    return (
        f'<?xml version="1.0"?>\n<ismrmrdHeader xmlns="{NAMESPACE}">'
        f"{number}{before}<experimentalConditions>{field}</experimentalConditions>{body}{after}</ismrmrdHeader>\n"
    )


def readouts(count=1, coils=2, samples=32, *, flags=(), dimensions=0, seed=0, data=None, first=0, **fields):
    """A block of equally shaped readouts with complex normal data.

    Parameters
    ----------
    count
        How many; taken from `data` when that is given.
    data
        ``(readout, coil, sample)`` to use instead of random numbers.
    flags
        `AcquisitionFlag` members that all of them carry.
    dimensions
        Trajectory dimensions.
    first
        Scan counter of the first; it and the time stamp count up.
    fields
        Values, one for all or one each, of encoding counters (``kspace_encode_step_1``, ``slice``, ``phase``, ...) and
        of header fields (``center_sample``, ``position``, ``discard_pre``, ...).
    """
    generator = np.random.default_rng(seed)
    if data is None:
        shape = (count, coils, samples)
        data = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)
    count, coils, samples = data.shape
    headers = np.zeros(count, ACQUISITION_HEADER)
    headers["version"] = 1
    headers["flags"] = flag_mask(*flags)
    headers["scan_counter"] = first + np.arange(count)
    headers["acquisition_time_stamp"] = 1000 + 4 * (first + np.arange(count))
    headers["number_of_samples"] = samples
    headers["available_channels"] = headers["active_channels"] = coils
    headers["center_sample"] = samples // 2
    headers["trajectory_dimensions"] = dimensions
    headers["sample_time_us"] = 5.0
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = np.eye(3)
    for name, values in fields.items():
        (headers["idx"] if name in headers["idx"].dtype.names else headers)[name] = values
    trajectory = generator.standard_normal((count, samples, dimensions)).astype(np.float32) if dimensions else None
    return Readouts(headers, data, trajectory)


def waveform(channels=4, samples=10, *, time_stamp=1000, waveform_id=0, seed=0):
    """A waveform of random counts."""
    header = np.zeros((), WAVEFORM_HEADER)
    header["version"], header["sample_time_us"] = 1, 2500.0
    header["channels"], header["number_of_samples"] = channels, samples
    header["time_stamp"], header["waveform_id"] = time_stamp, waveform_id
    data = np.random.default_rng(seed).integers(0, 4096, (channels, samples), dtype=np.uint32)
    return Waveform(header[()], data)
