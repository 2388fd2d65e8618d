"""Make the package that a scanner installs: a zip of the image and its manual, checked for what scanners reject.

python containers/package.py -o dist                          the label and the manual; no Docker needed
python containers/package.py -o dist --image dist/image.tar   the zip, from what `docker save` wrote
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets.settings.openrecon import (
    LABEL_KEY,
    check_label,
    encode_label,
    label_text,
    make_label,
    package_name,
    read_label,
)
from recon_core.errors import CinestreamError, ResourceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS, _LINES = 88, 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if all was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--image", type=Path, metavar="TAR", help="what `docker save` wrote of the openrecon image")
    parser.add_argument("--manual", type=Path, metavar="PDF", help="a manual of your own instead of the one made here")
    parser.add_argument("--gpu", action="store_true", help="the image can use a GPU (ACCELERATOR=cu118)")
    options = parser.parse_args(arguments)
    try:
        label = make_label(gpu=options.gpu)
        manual = write_pdf(manual_lines(label)) if options.manual is None else options.manual.read_bytes()
        for path in make(label, manual, options.image, options.output):
            sys.stdout.write(f"{path}\n")
    except (CinestreamError, OSError) as error:
        sys.stderr.write(f"package: {error}\n")
        return 1
    return 0


def make(label: dict[str, Any], manual: bytes, image: Path | None, folder: Path) -> list[Path]:
    """Write label and manual, or with an image the whole package.

    Parameters
    ----------
    label
        The application spec.
    manual
        The PDF that the scanner shows as help.
    image
        Tar of the image; None if there is none yet.
    folder
        Where to write.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    SettingsError
        If the scanner would reject it; says why.
    ResourceError
        If the image cannot be read.
    """
    problems = check_label(label)
    if not manual.startswith(b"%PDF-"):
        problems.append("the manual is no PDF; the scanner wants one")
    if image is not None:
        problems += check_image(image, label)
    if problems:
        raise SettingsError("a scanner would reject this:\n  " + "\n  ".join(problems))
    folder.mkdir(parents=True, exist_ok=True)
    name = package_name(label)
    if image is None:
        contents = {".json": label_text(label).encode(), ".label": encode_label(label).encode(), ".pdf": manual}
        for ending, content in contents.items():
            (folder / f"{name}{ending}").write_bytes(content)
        return [folder / f"{name}{ending}" for ending in contents]
    path = folder / f"{name}.zip"
    # Layers hardly compress; the two files lie flat, and bear the name of the zip.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as package:
        package.write(image, f"{name}.tar")
        package.writestr(f"{name}.pdf", manual)
    return [path]


def check_image(path: Path, label: dict[str, Any]) -> list[str]:
    """Look for what a scanner rejects in the tar of an image.

    Parameters
    ----------
    path
        What `docker save` wrote.
    label
        The application spec that the image must carry.

    Returns
    -------
    list of str
        What is wrong.

    Raises
    ------
    ResourceError
        If it is no such tar.
    """
    try:
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
            images = json.loads(_member(tar, "manifest.json"))
            if len(images) != 1:
                return [f"the tar holds {len(images)} images; save one"]
            name = images[0]["Config"]
            raw = _member(tar, name)
        config = json.loads(raw)
        problems = [*_check_layout(names, name, raw), *_check_config(config, label)]
    except (OSError, tarfile.TarError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResourceError(f"{path} is not what `docker save` writes of an image ({error})") from error
    return problems


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _check_layout(names: set[str], config: str, raw: bytes) -> list[str]:
    found = []
    if {"oci-layout", "index.json"} & names:
        found.append("the tar has the OCI layout, as Docker 25 and newer write it; save the image with Docker 24")
    if hashlib.sha256(raw).hexdigest() != config.rpartition("/")[2].removesuffix(".json"):
        found.append(f"the image's configuration is not what its name {config} says; save the image again")
    return found


def _check_config(config: dict[str, Any], label: dict[str, Any]) -> list[str]:
    found = []
    run = config["config"]
    if (config["os"], config["architecture"]) != ("linux", "amd64"):
        found.append(f"the image is for {config['os']} {config['architecture']}; build it for linux/amd64")
    if run.get("User") not in (None, "", "0", "root"):
        found.append(f"the image runs as user {run['User']!r}; OpenRecon wants root: build the target openrecon")
    port = label["reconstruction"]["port"]
    if f"{port}/tcp" not in (run.get("ExposedPorts") or {}):
        found.append(f"the image does not expose the port {port} of the label")
    if not run.get("Cmd"):
        found.append("the image has no command to start")
    carried = (run.get("Labels") or {}).get(LABEL_KEY)
    if carried is None:
        found.append(f"the image has no label {LABEL_KEY}; build the target openrecon")
    elif read_label(carried) != label:
        found.append("the image's label is not that of this version, or of the other of --gpu; build it again")
    return found


# --- the manual -----------------------------------------------------------------------------------------------------


def manual_lines(label: dict[str, Any]) -> list[str]:
    """The text of the manual: what it is, what it needs, what can be set."""
    general, needs = label["general"], label["reconstruction"]
    regulatory = general["regulatory_information"]
    memory = f"{needs['min_required_memory']} MB of memory, {needs['min_count_required_cpu_cores']} CPU cores"
    gpu = "A GPU is used when there is one." if needs["can_use_gpu"] else "No GPU is used."
    paragraphs = [
        f"{general['name']['en']} {general['version']}",
        "",
        general["information"]["en"],
        regulatory["safety_advices"],
        "",
        f"Data: {regulatory['special_operating_instructions']} Other scans are refused with a message.",
        f"Needs: {memory}. {gpu}",
        "A series whose method cannot serve it is made by another one; the comment of every image says so.",
        "",
        "Parameters",
    ]
    for parameter in label["parameters"]:
        default = str(parameter["default"]).lower() if parameter["type"] == "boolean" else parameter["default"]
        allowed = ""
        if parameter["type"] == "choice":
            allowed = "; one of " + ", ".join(value["id"] for value in parameter["values"])
        elif "minimum" in parameter:
            allowed = f"; from {parameter['minimum']} to {parameter['maximum']}"
        paragraphs += [
            "",
            f"{parameter['label']['en']} ({parameter['id']}): {default} unless changed{allowed}",
            parameter["information"]["en"],
        ]
    return [line for text in paragraphs for line in textwrap.wrap(text, _COLUMNS) or [""]]


def write_pdf(lines: Sequence[str]) -> bytes:
    """Set lines of plain text in Courier on A4 pages.

    Parameters
    ----------
    lines
        Characters outside Latin-1 become question marks.

    Returns
    -------
    bytes
        A PDF of version 1.4.
    """
    pages = [lines[begin : begin + _LINES] for begin in range(0, len(lines), _LINES)] or [[]]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in enumerate(pages):
        text = b"\n".join(b"(" + _escaped(line) + b") Tj T*" for line in page)
        stream = b"BT /F1 9 Tf 12 TL 50 790 Td\n" + text + b"\nET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream",
        ]
    made, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(made))
        made += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        made
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
            f"startxref\n{len(made)}\n%%EOF\n"
        ).encode()
    )


def _escaped(line: str) -> bytes:
    raw = line.encode("latin-1", "replace")
    return raw.replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")


if __name__ == "__main__":
    sys.exit(main())
