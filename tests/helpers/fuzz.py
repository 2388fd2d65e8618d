"""Damaged files of every kind that is read: made from a seed, read in processes of their own.

``python -m tests.helpers.fuzz KIND SEED FIRST END FOLDER`` reads the mutations FIRST to END of a kind and prints the
number of each before it is read, and what was no error of cinestream's own. A library may crash or hang on such a
file, so `faults` watches the process, and goes on behind the mutation that ended it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import select
import shutil
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.helpers.paths import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable

_MEMORY = 12 << 30  # of addresses; what claims more fails to allocate instead of taking the machine down
_SECONDS = 60.0  # for one mutation, start of the process included
_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


# --- mutations --------------------------------------------------------------------------------------------------------


def mutate_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    """Flip, cut, insert, repeat or overwrite some of the bytes."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        at = int(generator.integers(len(data) + 1)) if generator.random() < 0.7 else int(generator.integers(256))
        at = min(at, len(data))
        length = int(min(2 ** generator.integers(0, 10), len(data) - at))
        kind = generator.integers(7)
        if kind < 2:
            for place in generator.integers(0, max(1, len(data)), int(generator.integers(1, 9))):
                data[int(place) : int(place) + 1] = bytes([int(generator.integers(256))])
        elif kind == 2:
            size = int(2 ** generator.integers(0, 4))
            number = _INTERESTING[int(generator.integers(len(_INTERESTING)))] & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, "little")
        elif kind == 3:
            del data[at : len(data) if generator.random() < 0.3 else at + length]
        elif kind == 4:
            data[at:at] = generator.bytes(length)
        elif kind == 5:
            data[at : at + length] = bytes(length)
        else:
            begin = int(generator.integers(len(data) + 1))
            data[at:at] = data[begin : begin + length]
    return bytes(data)


def mutate_text(content: bytes, generator: np.random.Generator) -> bytes:
    """Change words and lines of a text, so that it stays well formed more often."""
    words = content.decode().replace(">", "> ").replace("<", " <").split(" ")
    values = [
        "",
        "nan",
        "-1",
        "1e400",
        "99999999999999999999",
        "true",
        "[]",
        "{}",
        "null",
        "\u20ac",
        "\0",
        "<a/>",
        "&x;",
    ]
    for _ in range(int(generator.integers(1, 4))):
        at, other = (int(number) for number in generator.integers(0, len(words), 2))
        kind = generator.integers(4)
        if kind == 0:
            words[at] = values[int(generator.integers(len(values)))]
        elif kind == 1:
            words[at], words[other] = words[other], words[at]
        elif kind == 2:
            del words[at]
            words = words or [""]
        else:
            words.insert(at, words[other])
    return " ".join(words).replace("> ", ">").replace(" <", "<").encode("utf-8", "surrogatepass")


def mutate_hdf5(path: Path, generator: np.random.Generator) -> None:
    """Change the structure of an HDF5 file, which stays sound as such."""
    import h5py

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(int(generator.integers(1, 3))):
            names = [name for name in names if name in file]
            if not names:
                return
            name, other = (names[int(number)] for number in generator.integers(0, len(names), 2))
            with contextlib.suppress(Exception):
                _change(file, name, other, generator)


def _change(file: Any, name: str, other: str, generator: np.random.Generator) -> None:
    import h5py

    node = file[name]
    kind = int(generator.integers(9))
    if kind == 0:
        del file[name]
    elif kind == 1:
        del file[name]
        file[name] = _odd(generator)
    elif kind == 2:
        file.move(name, f"{other}/moved")
    elif kind == 3:
        file[f"{other}/link"] = [h5py.SoftLink("/nowhere"), node, file["/"]][int(generator.integers(3))]
    elif kind == 4:
        node.attrs["shape"] = _odd(generator)
    elif kind == 5 and hasattr(node, "resize"):
        node.resize(int(generator.choice([0, 1, 3, 100, 1 << 33])), axis=int(generator.integers(node.ndim)))
    elif kind == 6 and hasattr(node, "shape"):
        values = node[()]
        del file[name]
        file[name] = values[: int(generator.integers(len(values) + 1))]
    elif kind == 7 and hasattr(node, "shape"):
        values = node[()]
        del file[name]
        file[name] = np.asarray(values).reshape(-1) if generator.random() < 0.5 else np.asarray(values)[None]
    elif hasattr(node, "shape") and node.size:
        _change_values(node, generator)


def _change_values(node: Any, generator: np.random.Generator) -> None:
    """Other numbers in one field of some rows, such as counters and sizes of a header."""
    values = node[()]
    field = values["head"] if values.dtype.names and "head" in values.dtype.names else values
    while field.dtype.names:
        field = field[field.dtype.names[int(generator.integers(len(field.dtype.names)))]]
    flat = field.reshape(-1)
    if flat.dtype.kind in "iuf":
        where = generator.integers(0, len(flat), 3) if generator.random() < 0.5 else slice(None)
        with np.errstate(all="ignore"):
            flat[where] = np.array(generator.choice([0, 1, 2, 7, 255, 65535, 1e30, np.nan])).astype(flat.dtype)
        field[...] = flat.reshape(field.shape)
        node[...] = values


def _odd(generator: np.random.Generator) -> Any:
    odd = [0, "text", b"bytes", np.empty(0), np.zeros((2, 3)), np.zeros((1, 1, 1, 1, 1, 4, 4)), [b"<a/>", b""], np.nan]
    return odd[int(generator.integers(len(odd)))]


# --- kinds of files ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], Path]
    """Writes a sound one into a folder, and gives the file that is to be damaged."""
    read: Callable[[Path], object]
    """Does everything with it that reads it."""
    mutate: Callable[[bytes, np.random.Generator], bytes] = mutate_bytes
    """Changes what it holds."""
    hdf5: bool = False
    """Whether its structure can be changed, too."""


def _make_raw(folder: Path) -> Path:
    from gadgets.simulation import ScanPlan, write_simulation

    plan = ScanPlan(matrix_x=16, matrix_y=16, frames=2, coils=2, acceleration=2, acs_lines=4, noise_readouts=4, seed=1)
    write_simulation(plan, folder / "scan.h5")
    return folder / "scan.h5"


def _make_stream(folder: Path) -> Path:
    from gadgets.files.raw import open_scan
    from gadgets.wire.messages import Close, Header
    from gadgets.wire.writer import encode

    with open_scan(_make_raw(folder)) as scan:
        messages = [Header(scan.header), *scan.items, Close()]
    content = b"".join(bytes(part) for message in messages for part in encode(message))
    (folder / "scan.mrd").write_bytes(content)
    return folder / "scan.mrd"


def _read_raw(path: Path) -> None:
    from gadgets.files.noise import read_noise
    from gadgets.inspection.raw_file import inspect
    from gadgets.settings.settings import Settings
    from recon_core.errors import CinestreamError

    with contextlib.suppress(CinestreamError):
        read_noise(path)
    inspect(path, Settings.of(method="zero_filled")).text()


def _make_images(folder: Path) -> Path:
    from gadgets.files.images import ImageFile
    from gadgets.files.raw import open_scan
    from gadgets.wire.messages import IMAGE_HEADER, Image

    with open_scan(_make_raw(folder)) as scan, ImageFile(folder / "images.h5", header=scan.header) as file:
        for series in (1, 2):
            for frame in range(3):
                header = np.zeros((), IMAGE_HEADER)
                header["version"], header["data_type"], header["image_series_index"] = 1, 5, series
                header["matrix_size"], header["field_of_view"], header["channels"] = (8, 8, 1), (80, 80, 8), 1
                header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
                header["phase"], header["image_index"], header["image_type"] = frame, frame + 1, 1
                text = "<ismrmrdMeta><meta><name>cinestream_rr_ms</name><value>900</value></meta></ismrmrdMeta>"
                file.append(Image(header[()], np.full((1, 1, 8, 8), frame, np.float32), text))
    return folder / "images.h5"


def _read_images(path: Path) -> None:
    from gadgets.evaluation.images import read_series
    from gadgets.export.targets import ExportTargets, export_images
    from gadgets.problems import Problems
    from recon_core.errors import CinestreamError

    with contextlib.suppress(CinestreamError):
        read_series(path)
    out = path.with_name("exported")
    shutil.rmtree(out, ignore_errors=True)
    export_images(path, "dataset", ExportTargets(dicom=out / "dicom", nifti=out / "nifti"), Problems())


def _make_matlab(folder: Path) -> Path:
    import h5py

    kspace = np.zeros((2, 2, 2, 16, 16), [("real", "<f4"), ("imag", "<f4")])
    kspace["real"] = np.random.default_rng(0).standard_normal(kspace.shape)
    with h5py.File(folder / "cine.mat", "w", userblock_size=512) as file:
        file["kspace_full"] = kspace
    return folder / "cine.mat"


def _make_fastmri(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "cine.h5", "w") as file:
        file["kspace"] = np.ones((2, 2, 16, 16), np.complex64)
        file["kspace"].attrs["shape"] = (1, 2, 2, 16, 16)
    return folder / "cine.h5"


def _read_foreign(path: Path) -> None:
    from gadgets.files.convert import convert

    convert(path, path.with_name("converted.h5"), overwrite=True)


def _make_nifti(folder: Path) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / "ct.nii")
    return folder / "ct.nii"


def _make_dicom(folder: Path) -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    series, frame = generate_uid(), generate_uid()
    for number in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.Modality, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "CT", series, frame
        dataset.Rows = dataset.Columns = 4
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
        dataset.PhotometricInterpretation, dataset.PixelSpacing = "MONOCHROME2", [2, 2]
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = bytes(32)
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder / "1.dcm"


def _read_ct(path: Path) -> None:
    from recon_core.ct.load import load_volume

    load_volume(path.parent if path.suffix == ".dcm" else path)


def _make_weights(folder: Path) -> Path:
    from tests.helpers.networks import write_tiny_weights

    write_tiny_weights(folder, "dual_unet_resnet3d")
    return folder / "dual_unet_resnet3d.safetensors"


def _make_checkpoint(folder: Path) -> Path:
    import torch

    from tests.helpers.networks import tiny

    network = tiny("dual_unet_resnet3d")
    tensors = {network.authors_key(key): value.clone() for key, value in network.state_dict().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def _read_weights(path: Path) -> None:
    from recon_core.errors import CinestreamError
    from recon_core.weights.loading import import_weights, load_network
    from recon_core.weights.manifest import find_weights
    from tests.helpers.networks import TINY

    method = "dual_unet_resnet3d"
    if path.suffix == ".safetensors":
        with contextlib.suppress(CinestreamError):
            entry = find_weights(method)
            # as if the manifest had been written for these very bytes
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            load_network(dataclasses.replace(entry, sha256=digest), "cpu")
    import_weights(method, path, name="copy", folder=path.with_name("imported"), config=TINY[method])


def _make_manifest(folder: Path) -> Path:
    shutil.copy(_make_weights(folder).with_name("manifest.yaml"), folder / "one.yaml")
    packaged = (REPOSITORY / "weights" / "manifest.yaml").read_text(encoding="utf-8")
    own = (folder / "one.yaml").read_text(encoding="utf-8")
    (folder / "manifest.yaml").write_text(own + packaged, encoding="utf-8")
    return folder / "manifest.yaml"


def _read_manifest(path: Path) -> None:
    from recon_core.weights.loading import load_network
    from recon_core.weights.manifest import find_weights, list_weights, weights_problems

    list_weights()
    weights_problems()
    entry = find_weights("dual_unet_resnet3d", "dual_unet_resnet3d")
    assert str(path.parent) in str(entry.file)
    load_network(entry, "cpu")


def _make_header(folder: Path) -> Path:
    from gadgets.files.raw import open_scan

    with open_scan(_make_raw(folder)) as scan:
        (folder / "header.xml").write_text(scan.header, encoding="utf-8")
    return folder / "header.xml"


def _read_header(path: Path) -> None:
    from gadgets.export.scan_facts import ScanFacts
    from gadgets.images.collection import tick_of_images
    from gadgets.wire.attributes import read_meta
    from gadgets.wire.header import parse_header
    from recon_core.errors import CinestreamError

    text = path.read_bytes().decode("utf-8", "replace")
    read_meta(text)
    tick_of_images(text)
    with contextlib.suppress(CinestreamError):
        ScanFacts(text)
    parse_header(text)


def _make_pipeline(folder: Path) -> Path:
    shutil.copy(REPOSITORY / "pipelines" / "crunet_mr.xml", folder / "pipeline.xml")
    return folder / "pipeline.xml"


def _read_pipeline(path: Path) -> None:
    from gadgets.settings.pipelines import settings_of
    from gadgets.wire.attributes import read_meta

    read_meta(path.read_bytes().decode("utf-8", "replace"))
    settings_of(path)


def _text_or_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    return (mutate_text if generator.random() < 0.7 else mutate_bytes)(content, generator)


def _make_text(folder: Path) -> Path:
    (folder / "file").write_text("a text", encoding="utf-8")
    return folder / "file"


def _raise(path: Path) -> None:
    if path.read_text(encoding="utf-8", errors="replace") != "a text":
        raise ZeroDivisionError


def _crash(path: Path) -> None:
    if path.read_text(encoding="utf-8", errors="replace") != "a text":
        os.abort()


KINDS = {
    "raw": Kind(_make_raw, _read_raw, hdf5=True),
    "mrd": Kind(_make_stream, _read_raw),
    "images": Kind(_make_images, _read_images, hdf5=True),
    "mat": Kind(_make_matlab, _read_foreign, hdf5=True),
    "fastmri": Kind(_make_fastmri, _read_foreign, hdf5=True),
    "nifti": Kind(_make_nifti, _read_ct),
    "dicom": Kind(_make_dicom, _read_ct),
    "weights": Kind(_make_weights, _read_weights),
    "checkpoint": Kind(_make_checkpoint, _read_weights),
    "manifest": Kind(_make_manifest, _read_manifest, _text_or_bytes),
    "header": Kind(_make_header, _read_header, _text_or_bytes),
    "pipeline": Kind(_make_pipeline, _read_pipeline, _text_or_bytes),
}


_TEST_KINDS = {"raises": Kind(_make_text, _raise), "crashes": Kind(_make_text, _crash)}


# --- reading them -----------------------------------------------------------------------------------------------------


def damage(kind: Kind, path: Path, sound: bytes, seed: tuple[int, int]) -> None:
    """Write a mutation of a file in its place."""
    generator = np.random.default_rng(seed)
    path.write_bytes(sound)
    if kind.hdf5 and generator.random() < 0.5:
        with contextlib.suppress(Exception):
            mutate_hdf5(path, generator)
    else:
        path.write_bytes(kind.mutate(sound, generator))


def _work(name: str, seed: int, first: int, end: int, folder: Path) -> None:
    import resource

    from recon_core.errors import CinestreamError

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    kind = {**KINDS, **_TEST_KINDS}[name]
    path = kind.make(folder)
    os.environ["CINESTREAM_WEIGHTS"] = str(folder)
    sound = path.read_bytes()
    kind.read(path)
    for number in range(first, end):
        print(number, flush=True)
        damage(kind, path, sound, (seed, number))
        try:
            kind.read(path)
        except CinestreamError:
            pass
        except BaseException as error:  # noqa: BLE001 - it is what is looked for
            place = traceback.extract_tb(error.__traceback__)
            ours = [one for one in place if "tests" not in one.filename][-3:]
            where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(ours))
            print(f"FAULT {name} {number}: {type(error).__name__}: {str(error)[:200]!r} at {where}", flush=True)
    print("DONE", flush=True)


def faults(name: str, count: int, seed: int, folder: Path, begin: int = 0) -> list[str]:
    """Read so many mutations of a kind, the first of them with the number `begin`.

    Returns
    -------
    list of str
        What was no error of cinestream's own, crashes and hangs among them.
    """
    found, first = [], begin
    while first < begin + count:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        arguments = [sys.executable, "-m", "tests.helpers.fuzz", name, *map(str, (seed, first, begin + count, folder))]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
            last, ended = _follow(process, found)
            process.kill()
            errors = process.stderr.read().decode("utf-8", "replace").strip().splitlines() if process.stderr else []
        if last == "DONE":
            return found
        if not last.isdigit():
            return [*found, f"{name} cannot be read before it is damaged: {errors[-3:]}"]
        found.append(f"{name} {last}: {ended} with {process.returncode}: {errors[-1:]}")
        first = int(last) + 1
    return found


def _follow(process: subprocess.Popen[bytes], found: list[str]) -> tuple[str, str]:
    """The last line of a process, faults apart, and how it ended."""
    last, rest = "", b""
    assert process.stdout is not None
    while True:
        ready, _, _ = select.select([process.stdout], [], [], _SECONDS)
        if not ready:
            return last, "hangs, killed"
        block = os.read(process.stdout.fileno(), 1 << 16)
        if not block:
            return last, "crashes"
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if text.startswith("FAULT "):
                found.append(text)
            else:
                last = text


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
