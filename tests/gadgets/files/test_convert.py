"""K-space of other layouts becomes scans whose images are those of the simulated scan that they were made from."""

import dataclasses
import sys
import types

import h5py
import numpy as np
import pytest

from gadgets.commands.main import main
from gadgets.connection.server import SharedEngine
from gadgets.files.convert import ConvertOptions, convert
from gadgets.files.images import read_images
from gadgets.files.raw import open_scan, write_scan
from gadgets.inspection.raw_file import inspect
from gadgets.replay import replay
from gadgets.settings.settings import Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Readouts
from recon_core.errors import DataError, ResourceError, SettingsError
from recon_core.metrics.measures import best_scale, nrmse
from recon_core.simulate.sampling import pseudo_radial_mask

PLAN = ScanPlan(
    matrix_x=48,
    matrix_y=40,
    frames=4,
    coils=3,
    slices=2,
    sampling="full",
    snr=0.0,
    waveforms=False,
    slice_gap=0.0,
    seed=3,
)
ENGINE = SharedEngine()
FOV = (PLAN.field_of_view_x, PLAN.field_of_view_y)


def simulated(plan, folder, name="scan.h5"):
    """The file of a simulated scan, and its k-space (slice, frame, coil, ky, kx) on the stored lines and samples."""
    scan, path = simulate(plan), folder / name
    items = [item for item in scan.items() if isinstance(item, Readouts)]
    write_scan(path, scan.header, items)
    headers = np.concatenate([item.headers for item in items])
    data = np.concatenate([item.data for item in items])
    lines = plan.encoded_y - plan.dropped_lines
    kspace = np.zeros((plan.slices, plan.frames, lines, *data.shape[1:]), np.complex64)
    counters = headers["idx"]
    kspace[counters["slice"], counters["phase"], counters["kspace_encode_step_1"]] = data
    return path, kspace.swapaxes(2, 3)


def images_of(path, folder, settings=None):
    """Images (image, y, x) of a raw file."""
    output = folder / f"{path.stem}_images.h5"
    _, summary = replay(path, output, settings or Settings(), ENGINE, overwrite=True)
    assert not summary.problems.damage
    (images,) = read_images(output).values()
    return np.stack([image.data[0, 0] for image in images])


def write_matlab(path, dtype="<f4", chunks=None, **arrays):
    """A file as MATLAB's -v7.3 writes it: a user block, axes from behind, pairs of real and imag."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            if np.iscomplexobj(array):
                pairs = np.empty(array.shape, [("real", dtype), ("imag", dtype)])
                pairs["real"], pairs["imag"] = array.real, array.imag
                array = pairs
            file.create_dataset(name, data=array, chunks=chunks)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    return path


def matlab_order(kspace):
    """(slice, frame, coil, ky, kx) as HDF5 has the axes of (kx, ky, coil, slice, frame)."""
    return kspace.swapaxes(0, 1)


def write_fastmri(path, kspace, header):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace[:, 0].swapaxes(2, 3)
        file["ismrmrd_header"] = header
    return path


def write_promptmr(path, kspace):
    slices, frames, *sizes = kspace.shape
    with h5py.File(path, "w") as file:
        file["kspace"] = matlab_order(kspace).reshape(frames * slices, *sizes).swapaxes(2, 3)
        file.attrs["shape"] = (frames, slices, *sizes)
        file.attrs["padding_left"] = 0
    return path


def assert_same_images(path, original, folder, *, within=1e-5):
    ours, theirs = images_of(path, folder), images_of(original, folder)
    assert ours.shape == theirs.shape
    assert nrmse(best_scale(ours, theirs) * ours, theirs) < within


@pytest.mark.parametrize(
    ("key", "dtype", "chunks"),
    [("kspace_full", "<f4", None), ("kspace", "<f8", (2, 2, 1, 40, 96)), ("kspace_full", "<f4", (1, 1, 3, 20, 96))],
)
def test_cmrxrecon(tmp_path, key, dtype, chunks):
    original, kspace = simulated(PLAN, tmp_path)
    source = write_matlab(tmp_path / "cine_sax.mat", dtype, chunks, **{key: matlab_order(kspace)})
    options = ConvertOptions(field_of_view=FOV, slice_thickness=8.0, oversampling=2.0)
    result = convert(source, tmp_path / "out.h5", options)
    assert result.readouts == 2 * 4 * 40
    assert not any("assumed" in note for note in result.notes)
    assert_same_images(tmp_path / "out.h5", original, tmp_path)
    report = inspect(tmp_path / "out.h5", Settings())
    assert report.good
    assert "8 of 2 slices" in report.text()


def test_one_coil(tmp_path):
    original, kspace = simulated(dataclasses.replace(PLAN, coils=1), tmp_path)
    source = write_matlab(tmp_path / "cine_lax.mat", kspace_single_full=matlab_order(kspace)[:, :, 0])
    convert(source, tmp_path / "out.h5")
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


@pytest.mark.parametrize("sizes", [(47, 40), (48, 39), (47, 39)])
def test_odd_sizes(tmp_path, sizes):
    plan = dataclasses.replace(PLAN, matrix_x=sizes[0], matrix_y=sizes[1], slices=1, oversampling=2.0)
    original, kspace = simulated(plan, tmp_path)
    convert(write_matlab(tmp_path / "cine.mat", kspace_full=matlab_order(kspace)), tmp_path / "out.h5")
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


@pytest.mark.parametrize("changes", [{"partial_fourier": 0.75}, {"asymmetric_echo": 0.25}])
def test_centre_that_is_not_in_the_middle(tmp_path, changes):
    original, kspace = simulated(dataclasses.replace(PLAN, slices=1, **changes), tmp_path)
    result = convert(write_matlab(tmp_path / "cine.mat", kspace=matlab_order(kspace)), tmp_path / "out.h5")
    assert any("the k-space centre is at" in note for note in result.notes)
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


def test_last_lines_missing(tmp_path):
    original, kspace = simulated(dataclasses.replace(PLAN, slices=1), tmp_path)
    with open_scan(original) as scan:
        items = [item[item.headers["idx"]["kspace_encode_step_1"] < 30] for item in scan.items]
        limits = "<kspace_encoding_step_1><minimum>0</minimum><maximum>{}<"
        write_scan(tmp_path / "less.h5", scan.header.replace(limits.format(39), limits.format(29)), items)
    convert(write_matlab(tmp_path / "cine.mat", kspace=matlab_order(kspace[..., :30, :])), tmp_path / "out.h5")
    assert_same_images(tmp_path / "out.h5", tmp_path / "less.h5", tmp_path)


@pytest.mark.parametrize("sampling", ["uniform", "interleaved", "variable_density"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_undersampled(tmp_path, sampling, with_mask):
    plan = dataclasses.replace(PLAN, slices=1, sampling=sampling, acceleration=4, acs_lines=9)
    original, kspace = simulated(plan, tmp_path)
    mask = simulate(plan).truth.mask[0]
    full = simulated(PLAN, tmp_path, "full.h5")[1][:1] if with_mask else kspace
    samples = np.repeat(mask[:, :, None], kspace.shape[-1], axis=2).astype(float)
    write_matlab(tmp_path / "mask.mat", mask=samples[0] if sampling == "uniform" else samples)
    source = write_matlab(tmp_path / "cine.mat", kus=matlab_order(kspace if not with_mask else full))
    options = ConvertOptions(mask=tmp_path / "mask.mat" if with_mask else None)
    result = convert(source, tmp_path / "out.h5", options)
    assert result.readouts == mask.sum()
    with open_scan(tmp_path / "out.h5") as scan:
        (encoding,) = parse_header(scan.header).encodings
        headers = np.concatenate([item.headers for item in scan.items])
    assert encoding.calibration_mode == "embedded"
    if sampling != "variable_density":
        assert encoding.acceleration == 4
    both, only = (headers["flags"] & flag.bit != 0 for flag in (BOTH, ONLY))
    frames = mask.sum(axis=0)
    assert (both | only).sum() >= 4 * 9
    assert only.any() == (sampling != "variable_density")
    assert frames[headers["idx"]["kspace_encode_step_1"][both | only]].min() == 4
    if not with_mask:
        with open_scan(original) as scan:  # the reference lines belong to their frames in both
            items = list(scan.items)
            write_scan(tmp_path / "embedded.h5", scan.header.replace(">interleaved<", ">embedded<", 1), items)
        original = tmp_path / "embedded.h5"
        assert_same_images(tmp_path / "out.h5", original, tmp_path)


BOTH, ONLY = AcquisitionFlag.CALIBRATION_AND_IMAGING, AcquisitionFlag.PARALLEL_CALIBRATION


def test_fastmri(tmp_path):
    plan = dataclasses.replace(PLAN, frames=1, phase_oversampling=0.25)
    original, kspace = simulated(plan, tmp_path)
    padded = np.pad(kspace, [(0, 0)] * 3 + [(5, 5), (0, 0)])
    header = simulate(plan).header.replace("<y>50</y>", "<y>60</y>", 1)
    source = write_fastmri(tmp_path / "file.h5", padded, header)
    result = convert(source, tmp_path / "out.h5")
    assert result.readouts == 2 * 50
    with open_scan(tmp_path / "out.h5") as scan:
        (encoding,) = parse_header(scan.header).encodings
    assert encoding.encoded.matrix == (96, 60, 1)
    assert encoding.encoded.field_of_view == pytest.approx((720.0, 365.625, 8.0))
    assert encoding.recon.matrix == (48, 40, 1)
    settings = apply(Settings(), {"method": "zero_filled"})
    ours, theirs = images_of(tmp_path / "out.h5", tmp_path, settings), images_of(original, tmp_path, settings)
    assert nrmse(best_scale(ours, theirs) * ours, theirs) < 0.02  # finer pixels before the field of view is cut


def test_fastmri_of_a_writer_that_turned_the_axes(tmp_path):
    plan = dataclasses.replace(PLAN, frames=1)
    original, kspace = simulated(plan, tmp_path)
    source = write_fastmri(tmp_path / "file.h5", kspace.swapaxes(3, 4), simulate(plan).header)
    result = convert(source, tmp_path / "out.h5")
    assert any("(slice, coil, ky, kx)" in note for note in result.notes)
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


def test_promptmr(tmp_path):
    original, kspace = simulated(PLAN, tmp_path)
    convert(write_promptmr(tmp_path / "cine.h5", kspace), tmp_path / "out.h5", ConvertOptions(field_of_view=FOV))
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


def test_what_lies_next_to_it_is_read(tmp_path):
    _, kspace = simulated(PLAN, tmp_path)
    source = write_matlab(tmp_path / "cine_sax.mat", kspace_full=matlab_order(kspace))
    text = "Parameter,Value\nFOVx(mm),340\nFOVy(mm),255\nSliceThickness(mm),6\nModel,Vida\nReadOutOversample,2\n"
    (tmp_path / "cine_sax_info.csv").write_text(text, encoding="utf-8")
    result = convert(source, tmp_path / "out.h5", ConvertOptions(rr=800.0))
    assert any("340 x 255 mm from cine_sax_info.csv" in note for note in result.notes)
    with open_scan(tmp_path / "out.h5") as scan:
        (encoding,) = parse_header(scan.header).encodings
        headers = np.concatenate([item.headers for item in scan.items])
    assert encoding.encoded.field_of_view == (680.0, 255.0, 6.0)
    assert encoding.recon.field_of_view == (340.0, 255.0, 6.0)
    assert sorted(set(headers["physiology_time_stamp"][:, 0])) == [0, 80, 160, 240]  # 200 ms in ticks of 2.5 ms
    assert (np.diff(headers["acquisition_time_stamp"].astype(int)) >= 0).all()
    assert headers["flags"][-1] & AcquisitionFlag.LAST_IN_MEASUREMENT.bit


def test_what_is_assumed_is_reported(tmp_path):
    _, kspace = simulated(PLAN, tmp_path)
    result = convert(write_matlab(tmp_path / "cine.mat", kspace_full=matlab_order(kspace)), tmp_path / "out.h5")
    text = "\n".join(result.notes)
    assert "72 x 60 mm is assumed" in text
    assert "8 mm is assumed" in text
    assert "oversampling of the readout is known: 2 is assumed, so that 96 samples become 48 columns" in text
    assert "one cycle of 1000 ms" in text


@pytest.mark.parametrize(("oversampling", "columns"), [(None, 48), (1.0, 96), (1.5, 64), (2.0, 48)])
def test_oversampling_may_be_said(tmp_path, oversampling, columns):
    _, kspace = simulated(PLAN, tmp_path)
    source = write_matlab(tmp_path / "cine.mat", kspace_full=matlab_order(kspace))
    result = convert(source, tmp_path / "out.h5", ConvertOptions(oversampling=oversampling))
    with open_scan(tmp_path / "out.h5") as scan:
        (encoding,) = parse_header(scan.header).encodings
    assert encoding.recon.matrix[:2] == (columns, 40)
    assert any("--oversampling" in note for note in result.notes) is (oversampling is None)


def write_bart(path, kspace, time=10):
    """As BART does: 16 dimensions, the first one fastest."""
    sizes = [1] * 16
    sizes[0], sizes[1], sizes[3], sizes[time], sizes[13] = kspace.shape[::-1][:3] + kspace.shape[1::-1]
    path.with_suffix(".hdr").write_text(
        "# Dimensions\n" + " ".join(map(str, sizes)) + "\n# Command\n", encoding="utf-8"
    )
    path.with_suffix(".cfl").write_bytes(np.ascontiguousarray(kspace, "<c8").tobytes())
    return path.with_suffix(".cfl")


def write_array(kind, folder, kspace):
    path = folder / f"cine.{kind.split()[0]}"
    if kind == "npy":
        np.save(path, kspace)
    elif kind == "npz of one slice":
        np.savez(path, kspace=kspace[0], times=np.arange(3))
    elif kind == "npz of double precision":
        np.savez_compressed(path, anything=kspace.astype(np.complex128))
    elif kind.startswith("cfl"):
        return write_bart(path, kspace, int(kind.split()[-1]))
    else:
        with h5py.File(path, "w") as file:
            file["kspace" if kind == "h5" else "array"] = kspace
            file["mask"] = np.ones(kspace.shape[3])
    return path


ARRAYS = ["npy", "npz of one slice", "npz of double precision", "h5", "h5 of any name", "cfl 10", "cfl 11"]


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind, tmp_path):
    original, kspace = simulated(dataclasses.replace(PLAN, slices=1) if kind == "npz of one slice" else PLAN, tmp_path)
    source = write_array(kind, tmp_path, kspace)
    result = convert(source, tmp_path / "out.h5", ConvertOptions(oversampling=2.0, field_of_view=FOV))
    origin = "BART" if kind.startswith("cfl") else "array"
    slices = len(kspace)
    assert f"{origin} layout" in result.notes[0]
    assert f"{slices} slices of 4 frames, 3 coils, 40 lines of 96 samples" in result.notes[0]
    assert_same_images(tmp_path / "out.h5", original, tmp_path)
    result = convert(source, tmp_path / "plain.h5")
    assert any("1 is assumed, so that 96 samples become 96 columns" in note for note in result.notes)


def test_arrays_that_are_no_kspace(tmp_path):
    _, kspace = simulated(PLAN, tmp_path)
    np.savez(tmp_path / "two.npz", a=kspace, b=kspace)
    np.savez(tmp_path / "real.npz", a=kspace.real)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "empty.npy", kspace[:0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "objects.npy").read_bytes()[:40])
    write_bart(tmp_path / "cut.cfl", kspace)
    (tmp_path / "cut.cfl").write_bytes((tmp_path / "cut.cfl").read_bytes()[:-8])
    write_bart(tmp_path / "echoes.cfl", kspace, time=5)
    (tmp_path / "alone.cfl").write_bytes(bytes(8))
    for name, error, text in (
        ("two.npz", DataError, "expected one complex array .* it has a .*, b "),
        ("real.npz", DataError, "expected one complex array"),
        ("objects.npy", DataError, "damaged or laid out otherwise"),
        ("empty.npy", DataError, "empty k-space"),
        ("cut.npy", DataError, "damaged or laid out otherwise"),
        ("cut.cfl", DataError, "complex numbers, and .* bytes"),
        ("echoes.cfl", DataError, r"expected read, phase 1, coil .* got also 5 \(4\)"),
        ("alone.hdr", ResourceError, "BART has a .hdr and a .cfl"),
    ):
        with pytest.raises(error, match=text):
            convert(tmp_path / name, tmp_path / "out.h5")


@pytest.mark.parametrize("given", ["mask", "zeros"])
def test_masks_of_points_come_in(given, tmp_path):
    _, kspace = simulated(PLAN, tmp_path)
    mask = pseudo_radial_mask(4, 40, 96, 12)
    options = ConvertOptions(oversampling=2.0)
    if given == "mask":
        source = write_matlab(tmp_path / "cine.mat", kus=matlab_order(kspace))
        options = dataclasses.replace(options, mask=write_matlab(tmp_path / "mask.mat", mask=mask.astype(float)))
    else:
        source = write_matlab(tmp_path / "cine.mat", kus=matlab_order(kspace * mask[:, None]))
    result = convert(source, tmp_path / "out.h5", options)
    assert "a mask of points" in " ".join(result.notes)
    with open_scan(tmp_path / "out.h5") as scan:
        encoding = parse_header(scan.header).encodings[0]
        readouts = [item for item in scan.items if isinstance(item, Readouts)]
    assert encoding.recon.matrix[:2] == (96, 40)
    for part in readouts:
        for header, data in zip(part.headers, part.data, strict=True):
            points = mask[header["idx"]["phase"], header["idx"]["kspace_encode_step_1"]]
            np.testing.assert_array_equal((data != 0).any(0), points)


def matlab_5(path):
    path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(128))
    return path


def test_matlab_5_without_scipy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ResourceError, match="pip install scipy"):
        convert(matlab_5(tmp_path / "cine.mat"), tmp_path / "out.h5")


def test_matlab_5_with_scipy(tmp_path, monkeypatch):
    original, kspace = simulated(PLAN, tmp_path)
    document = {"__header__": b"", "kspace": matlab_order(kspace).T}
    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", types.SimpleNamespace(loadmat=lambda path: document))
    convert(matlab_5(tmp_path / "cine.mat"), tmp_path / "out.h5")
    assert_same_images(tmp_path / "out.h5", original, tmp_path)


def test_bad_files(tmp_path):
    original, kspace = simulated(PLAN, tmp_path)
    (tmp_path / "text.mat").write_text("no k-space", encoding="utf-8")
    cases = [
        (tmp_path / "absent.mat", ResourceError, "No such file"),
        (tmp_path / "text.mat", DataError, "neither HDF5"),
        (original, DataError, "is an ISMRMRD file already"),
        (write_matlab(tmp_path / "img.mat", img=np.ones((3, 4))), DataError, r"it has img \(3 x 4\)"),
        (write_matlab(tmp_path / "flat.mat", kspace=np.ones((3, 4), complex)), DataError, r"kspace \(3 x 4\)"),
        (write_matlab(tmp_path / "zero.mat", kspace=0 * matlab_order(kspace)), DataError, "nothing but zeros"),
        (write_matlab(tmp_path / "nan.mat", kspace=np.nan * matlab_order(kspace)), DataError, "not finite"),
    ]
    for source, error, text in cases:
        with pytest.raises(error, match=text):
            convert(source, tmp_path / "out.h5")
        assert not (tmp_path / "out.h5").exists()
    promptmr = write_promptmr(tmp_path / "cine.h5", kspace)
    with h5py.File(promptmr, "r+") as file:
        file.attrs["shape"] = (4, 3, 3, 40, 96)
    with pytest.raises(DataError, match="attribute shape says 4 x 3"):
        convert(promptmr, tmp_path / "out.h5")
    mask = write_matlab(tmp_path / "mask.mat", mask=np.ones((7, 96)))
    source = write_matlab(tmp_path / "cine.mat", kspace_full=matlab_order(kspace))
    with pytest.raises(DataError, match="4 frames of 40 lines x 96 samples"):
        convert(source, tmp_path / "out.h5", ConvertOptions(mask=mask))
    with pytest.raises(DataError, match="holds no mask"):
        convert(source, tmp_path / "out.h5", ConvertOptions(mask=source))
    with pytest.raises(SettingsError, match="--overwrite"):
        convert(source, original)


def test_command(tmp_path, capsys):
    _, kspace = simulated(PLAN, tmp_path)
    source = write_matlab(tmp_path / "cine.mat", kspace_full=matlab_order(kspace))
    assert main(["convert", str(source), str(tmp_path / "out.h5"), "--fov", "360,292.5", "--rr", "900"]) == 0
    out = capsys.readouterr().out
    assert "CMRxRecon layout, kspace_full: 2 slices of 4 frames, 3 coils, 40 lines of 96 samples" in out
    assert f"320 readouts in {tmp_path / 'out.h5'}" in out
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "out.h5"), "--fov", "360"])
    assert main(["convert", str(source), str(source), "--overwrite"]) == 2
