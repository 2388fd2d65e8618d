"""``cinestream replay``: exit status, messages, files; never a traceback for what a user can do wrong."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.files.images import read_images
from gadgets.files.raw import open_scan, write_scan
from gadgets.wire.messages import Readouts
from recon_core.methods import METHODS
from tests.gadgets.commands.conftest import PLAN, program


def test_a_good_replay(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    status, out, _ = run("replay", scan, "-o", output, "-p", "zero_filled", "--set", "series=5", "--set", "scale = 2.0")
    assert status == 0
    assert f"3 images of 1 slice in {output}" in out
    images = read_images(output)
    assert list(images) == [5]
    assert len(images[5]) == 3
    assert "zero_filled" in images[5][0].attributes


def test_what_is_made_in_addition_to_the_images(scan, tmp_path, run):
    made = {name: tmp_path / f"cine.{name}" for name in ("gif", "html")}
    truth = scan.with_name("scan_truth.npz")
    options = ["--gif", made["gif"], "--report", made["html"], "--truth", truth]
    status, out, _ = run("replay", scan, "-o", tmp_path / "images.h5", *options)
    assert status == 0
    with Picture.open(made["gif"]) as picture:
        assert picture.n_frames == 3
    page = made["html"].read_text(encoding="utf-8")
    assert "scan.h5" in page
    assert "cg_sense" in page
    assert 0.0 < float(re.search(r"(?i)against the truth:.*?nrmse ([\d.e+-]+)", out).group(1)) < 0.2


@pytest.mark.parametrize("option", ["--gif", "--report"])
def test_a_folder_that_is_not_there_is_known_before_the_reconstruction(option, scan, tmp_path, run):
    """Not after it, when what else was asked for would be lost."""
    others = ["--dicom", tmp_path / "dicom", option, tmp_path / "none" / "cine"]
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", *others)
    assert status == 1
    assert f"there is no folder {tmp_path / 'none'}" in err
    assert not (tmp_path / "images.h5").exists()


def test_the_truth_alone_is_enough_to_measure(scan, tmp_path, run):
    truth = scan.with_name("scan_truth.npz")
    status, out, _ = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", truth)
    assert status == 0
    assert "against the truth" in out


def test_a_pipeline_of_ones_own(scan, tmp_path, run):
    own = tmp_path / "own.xml"
    own.write_text("<configuration><method>zero_filled</method><series>9</series></configuration>", encoding="utf-8")
    assert run("replay", scan, "-o", tmp_path / "a.h5", "-p", own)[0] == 0
    assert run("replay", scan, "-o", tmp_path / "b.h5", "-p", "own", "--pipelines", tmp_path)[0] == 0
    assert list(read_images(tmp_path / "a.h5")) == list(read_images(tmp_path / "b.h5")) == [9]


def test_damaged_data_give_the_images_and_status_1(damaged, tmp_path, run):
    status, out, _ = run("replay", damaged, "-o", tmp_path / "images.h5", "--report", tmp_path / "report.html")
    assert status == 1
    assert "3 images" in out
    assert "5 coils" in tmp_path.joinpath("report.html").read_text(encoding="utf-8")
    assert len(read_images(tmp_path / "images.h5")[1]) == 3


@pytest.mark.slow
def test_the_log_reports_damage(damaged, tmp_path):
    outcome = program("replay", damaged, "-o", tmp_path / "images.h5")
    assert outcome.returncode == 1
    assert re.search(r"^ERROR readout \d+ has 5 coils, expected 3", outcome.stderr, re.MULTILINE)
    assert "%|" not in outcome.stderr  # no progress bar: nobody watches
    assert "\r" not in outcome.stderr


@pytest.mark.parametrize(("share", "images", "expected"), [(0.55, 2, 1), (0.9, 3, 0)])
def test_a_scan_that_ended_early_gives_what_there_is(share, images, expected, scan, tmp_path, run):
    """Status 1 if images are missing; a frame that only lacks lines has an image, whose comment says so."""
    short = tmp_path / "short.h5"
    with open_scan(scan) as raw:
        kept, items = int(share * (raw.readouts - PLAN.noise_readouts)) + PLAN.noise_readouts, []
        for item in raw.items:
            items.append(item[:kept] if isinstance(item, Readouts) else item)
            kept -= len(items[-1]) if isinstance(item, Readouts) else 0
        write_scan(short, raw.header, [item for item in items if not isinstance(item, Readouts) or len(item)])
    status, out, _ = run("replay", short, "-o", tmp_path / "images.h5")
    assert status == expected
    assert f"{images} images of 1 slice" in out
    assert "lacks lines in 1 of" in read_images(tmp_path / "images.h5")[1][0].attributes


def test_no_image_at_all_is_status_1(scan, tmp_path, run):
    empty = tmp_path / "empty.h5"
    with open_scan(scan) as raw:
        write_scan(empty, raw.header, [])
    status, _, err = run("replay", empty, "-o", tmp_path / "images.h5")
    assert status == 1
    assert "no image readouts" in err


def test_noise_of_another_file(tmp_path, run):
    scan, noise, store = tmp_path / "scan.h5", tmp_path / "scan_noise.h5", tmp_path / "store"
    sizes = ["--matrix-x", "32", "--matrix-y", "24", "--frames", "2", "--coils", "3", "--sampling", "full"]
    status, out, _ = run("simulate", scan, *sizes, "--noise-scan", "dependent")
    assert (status, f"its noise in {noise}" in out) == (0, True)

    def origin(*options):
        output = tmp_path / "images.h5"
        status, _, err = run("replay", scan, "-p", "zero_filled", "-o", output, "--overwrite", *options)
        assert status == 0, err
        return re.search("cinestream_noise</name><value>(.*?)[,<]", read_images(output)[1][0].attributes).group(1)

    assert origin() == "none"
    assert origin("--noise", noise) == "file scan_noise.h5"
    assert origin("--noise", f"{noise}:dataset") == "file scan_noise.h5"
    assert origin("--noise-store", store) == "none"
    status, out, _ = run("replay", noise, "-o", tmp_path / "none.h5", "--noise-store", store)
    assert (status, "0 images of 0 slices" in out) == (0, True)
    assert origin("--noise-store", store) == "store"
    assert origin("--noise-store", store, "--noise-days", "0") == "none"
    status, _, err = run("replay", scan, "-o", tmp_path / "none.h5", "--overwrite", "--noise", scan)
    assert (status, "no noise readouts" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["-p", "magic"], ["magic", "cinestream pipelines lists all"]),
        (["-p", "kt-sens"], ["did you mean kt_sense"]),
        (["--set", "metod=grappa"], ["did you mean method"]),
        (["--set", "method=grapa"], ["did you mean grappa"]),
        (["--set", "extra_series=zero_filled,fallbck"], ["did you mean fallback"]),
        (["--overwriet"], ["did you mean --overwrite"]),
        (["--dicom-kind", "clasic"], ["did you mean classic"]),
        (["-p", "../magic.xml"], ["bare name", "../magic.xml"]),
        (["--set", "speed=1"], ["speed", "cinestream pipelines lists all"]),
        (["--set", "iterations"], ["key=value", "iterations"]),
        (["--set", "iterations=many"], ["iterations", "whole number", "many"]),
        (["--set", "method=magic"], ["method", *METHODS, "magic"]),
        (["--pipelines", "/no/such/folder"], ["/no/such/folder"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_wrong_call_is_status_2_and_names_what_is_valid(options, texts, scan, tmp_path, run):
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", *options)
    assert status == 2
    assert all(text in err for text in texts)
    assert not (tmp_path / "images.h5").exists()


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    output.write_text("precious", encoding="utf-8")
    status, _, err = run("replay", scan, "-o", output)
    assert status == 2
    assert "--overwrite" in err
    assert output.read_text(encoding="utf-8") == "precious"
    assert run("replay", scan, "-o", output, "--overwrite")[0] == 0
    assert len(read_images(output)[1]) == 3


@pytest.mark.parametrize("option", ["-o", "--gif", "--report", "link"])
def test_the_raw_data_are_never_written_over(option, scan, tmp_path, run):
    source = Path(shutil.copy(scan, tmp_path))
    target = source
    if option == "link":
        target = tmp_path / "link.h5"
        target.symlink_to(source)
    options = ["-o", target] if option in {"-o", "link"} else ["-o", tmp_path / "images.h5", option, target]
    status, _, err = run("replay", source, *options, "--overwrite")
    assert status == 2
    assert "raw data" in err
    assert source.read_bytes() == scan.read_bytes()


@pytest.mark.parametrize("what", ["missing", "a folder", "text", "cut"])
def test_an_input_that_cannot_be_read(what, scan, tmp_path, run):
    source = tmp_path / "in.h5"
    if what == "a folder":
        source.mkdir()
    elif what != "missing":
        source.write_bytes(b"dear diary" if what == "text" else scan.read_bytes()[:1500])
    status, _, err = run("replay", source, "-o", tmp_path / "images.h5")
    assert status == 1
    assert str(source) in err


@pytest.mark.parametrize("what", ["missing", "empty", "npy", "cut", "other", "hdf5"])
def test_a_truth_that_cannot_be_read(what, scan, tmp_path, run):
    truth = tmp_path / "truth.npz"
    if what == "npy":
        np.save(tmp_path / "array.npy", np.ones(3))
        (tmp_path / "array.npy").rename(truth)
    elif what == "other":
        np.savez(truth, picture=np.ones(3))
    elif what != "missing":
        original = {"empty": b"", "cut": scan.with_name("scan_truth.npz").read_bytes()[:300], "hdf5": scan.read_bytes()}
        truth.write_bytes(original[what])
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", truth)
    assert status == 1
    assert f"cannot read the truth {truth}" in err
    assert not (tmp_path / "images.h5").exists()


def test_the_truth_of_another_scan(scan, tmp_path, run):
    np.savez(tmp_path / "truth.npz", image=np.ones((1, 2, 3, 4)))
    status, _, err = run("replay", scan, "-o", tmp_path / "images.h5", "--truth", tmp_path / "truth.npz")
    assert status in {1, 2}
    assert "does not fit" in err
    assert len(read_images(tmp_path / "images.h5")[1]) == 3


@pytest.mark.parametrize("option", ["-o", "--gif", "--report"])
def test_an_output_that_cannot_be_made(option, scan, tmp_path, run):
    options = [] if option == "-o" else ["-o", tmp_path / "images.h5"]
    target = tmp_path / "no" / "such" / "file"
    status, _, err = run("replay", scan, *options, option, target)
    assert status == 1
    assert f"cannot write {target}" in err
