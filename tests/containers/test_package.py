"""The package for a scanner, made from an image tar that is written here as Docker would write it."""

import hashlib
import importlib.util
import io
import json
import re
import tarfile
import zipfile

import pytest

from gadgets.settings.openrecon import LABEL_KEY, encode_label, make_label, package_name, read_label
from tests.helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "containers" / "package.py"
NAME = package_name(make_label())


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.spec_from_file_location("cinestream_package", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(**changes):
    run = {
        "User": "",
        "ExposedPorts": {"9002/tcp": {}},
        "Cmd": ["/bin/bash", "-c", "true"],
        "Labels": {LABEL_KEY: encode_label(make_label())},
    }
    run.update({key: value for key, value in changes.items() if key in run})
    top = {"architecture": "amd64", "os": "linux", "config": run}
    top.update({key: value for key, value in changes.items() if key in top})
    return top


def save(path, document, images=1, name=None, extra=()):
    """Write what ``docker save`` writes in its old layout."""
    raw = json.dumps(document).encode()
    name = name or hashlib.sha256(raw).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": ["openrecon_cinestream_cinestream:v0.1.0"], "Layers": ["l/layer.tar"]}]
    members = {name: raw, "manifest.json": json.dumps(manifest * images).encode(), "l/layer.tar": b"\0" * 10240}
    with tarfile.open(path, "w") as tar:
        for member, content in (members | dict.fromkeys(extra, b"{}")).items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "image.tar", config())


def test_without_an_image_label_and_manual_are_made(package, tmp_path, capsys):
    assert package.main(["-o", str(tmp_path / "dist")]) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "dist").iterdir()}
    assert set(written) == {f"{NAME}.json", f"{NAME}.label", f"{NAME}.pdf"}
    assert json.loads(written[f"{NAME}.json"]) == make_label()
    assert read_label(written[f"{NAME}.label"].decode()) == make_label()
    assert capsys.readouterr().out.count(NAME) == 3


def test_the_package_is_flat_stored_and_named_alike(package, image, tmp_path):
    assert package.main(["-o", str(tmp_path / "dist"), "--image", str(image)]) == 0
    (path,) = (tmp_path / "dist").iterdir()
    assert path.name == f"{NAME}.zip"
    with zipfile.ZipFile(path) as made:
        assert made.namelist() == [f"{NAME}.tar", f"{NAME}.pdf"]
        assert {entry.compress_type for entry in made.infolist()} == {zipfile.ZIP_STORED}
        assert made.read(f"{NAME}.tar") == image.read_bytes()
        assert made.read(f"{NAME}.pdf").startswith(b"%PDF-")


REJECTED = {
    "not root": (config(User="10001"), {}, "wants root"),
    "for another processor": (config(architecture="arm64"), {}, "linux/amd64"),
    "no port": (config(ExposedPorts=None), {}, "expose the port 9002"),
    "nothing to start": (config(Cmd=None), {}, "no command"),
    "no label": (config(Labels=None), {}, "no label"),
    "label of another version": (
        config(Labels={LABEL_KEY: encode_label({**make_label(), "parameters": []})}),
        {},
        "not that of this version",
    ),
    "label for a GPU": (config(Labels={LABEL_KEY: encode_label(make_label(gpu=True))}), {}, "--gpu"),
    "label that is none": (config(Labels={LABEL_KEY: "?"}), {}, "neither"),
    "new layout": (config(), {"extra": ["oci-layout", "index.json"]}, "Docker 24"),
    "changed since": (config(), {"name": "0" * 64 + ".json"}, "save the image again"),
    "two images": (config(), {"images": 2}, "2 images"),
    "no image": ({}, {}, "not what `docker save` writes"),
}


@pytest.mark.parametrize(("document", "how", "words"), REJECTED.values(), ids=REJECTED)
def test_what_a_scanner_rejects_is_not_packed(package, document, how, words, tmp_path, capsys):
    image = save(tmp_path / "image.tar", document, **how)
    assert package.main(["-o", str(tmp_path / "dist"), "--image", str(image)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()


def test_what_is_no_tar_or_no_pdf(package, image, tmp_path, capsys):
    (tmp_path / "text").write_text("text", encoding="utf-8")
    for arguments, words in [
        (["--image", tmp_path / "text"], "not what `docker save` writes"),
        (["--image", tmp_path / "none"], "none"),
        (["--image", image, "--manual", tmp_path / "text"], "no PDF"),
    ]:
        assert package.main(["-o", str(tmp_path / "dist"), *map(str, arguments)]) == 1
        assert words in capsys.readouterr().err


# --- the manual -------------------------------------------------------------------------------------------------------


def text_of(pdf):
    return [
        re.sub(rb"\\(.)", rb"\1", line).decode("latin-1")
        for line in re.findall(rb"^\((.*)\) Tj T\*$", pdf, re.MULTILINE)
    ]


def test_manual_names_every_parameter_and_what_it_is_not_for(package):
    lines = text_of(package.write_pdf(package.manual_lines(make_label())))
    assert max(map(len, lines)) <= 88
    text = " ".join(lines)
    assert "Not a medical device" in text
    for parameter in make_label()["parameters"]:
        assert f"{parameter['label']['en']} ({parameter['id']})" in text


@pytest.mark.parametrize("count", [0, 1, 60, 61, 200])
def test_pdf_is_whole(package, count):
    """Every object stands where the table says, and every page is there."""
    wanted = [f"line {number} (of \\many) \u00e9" for number in range(count)]
    pdf = package.write_pdf(wanted)
    assert text_of(pdf) == wanted
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    table = pdf[start:].split(b"\n")
    assert table[0] == b"xref"
    offsets = [int(line[:10]) for line in table[3:] if line.endswith(b" 00000 n ")]
    assert len(offsets) + 1 == int(table[1].split()[1])
    for number, offset in enumerate(offsets, 1):
        assert pdf[offset:].startswith(f"{number} 0 obj\n".encode())
    pages = -(-max(count, 1) // 60)
    assert pdf.count(b"/Type /Page ") == pages
    assert f"/Count {pages} ".encode() in pdf
    for length, stream in re.findall(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", pdf, re.DOTALL):
        assert int(length) == len(stream)


def test_characters_that_the_font_lacks(package):
    assert text_of(package.write_pdf(["\u4e2d\u6587"])) == ["??"]
