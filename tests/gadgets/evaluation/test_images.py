import csv
import re

import h5py
import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.commands.main import main
from gadgets.evaluation.images import evaluate, read_series, table, write_csv
from gadgets.files.images import ImageFile, read_images
from gadgets.images.pictures import GAP
from gadgets.reports.evaluation import write_gif, write_page
from gadgets.simulation import ScanPlan, write_simulation
from gadgets.wire.messages import IMAGE_HEADER, Image
from recon_core.errors import DataError, ResourceError
from recon_core.metrics.scores import SCORES, measure, read_truth, scaled
from tests.gadgets.reports.test_scan import Checker, beating

DYNAMIC = ["dynamic_nrmse", "dynamic_psnr", "dynamic_ssim"]


def image(frame, *, series=1, **counters):
    header = np.zeros((), IMAGE_HEADER)
    header["field_of_view"] = (320, 240, 8)
    header["image_series_index"] = series
    for name, value in counters.items():
        header[name] = value
    header["physiology_time_stamp"][0] = 100 + 12 * header["phase"]
    return Image(header, np.asarray(frame, np.complex64 if np.iscomplexobj(frame) else np.float32)[None, None])


def write(path, images, group="dataset"):
    with ImageFile(path, group) as file:
        for one in images:
            file.append(one)
    return path


def write_scan(path, slices, **options):
    """An image file of ``(slice, frame, y, x)``, its images in random order."""
    images = [image(frame, slice=i, phase=k) for i, frames in enumerate(slices) for k, frame in enumerate(frames)]
    order = np.random.default_rng(0).permutation(len(images))
    return write(path, [images[i] for i in order], **options)


@pytest.fixture
def truth():
    return np.stack([beating(), beating(seed=1)])


@pytest.fixture
def known(truth, tmp_path):
    path = tmp_path / "truth.npz"
    np.savez(path, image=truth)
    return path


@pytest.fixture
def noisy(truth):
    return truth * 7 + 0.5 * np.random.default_rng(2).random(truth.shape, dtype=np.float32)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


# --- reading ----------------------------------------------------------------------------------------------------------


def test_images_are_sorted_by_their_counters(noisy, tmp_path):
    (series,) = read_series(write_scan(tmp_path / "a.h5", noisy * 1j))
    assert series.slices == ("slice 0", "slice 1")
    np.testing.assert_allclose(series.frames, noisy, rtol=1e-6)
    assert series.frames[0].dtype == np.float32
    assert series.aspect == pytest.approx(4 / 3)
    assert series.seconds == pytest.approx(0.03)
    assert series.name == str(tmp_path / "a.h5")


def test_slices_are_distinguished_as_in_a_report(tmp_path):
    counters = [
        {"repetition": repetition, "set": number, "contrast": contrast, "slice": place, "phase": phase}
        for repetition in (0, 1)
        for number in (0, 1)
        for contrast in (0, 1)
        for place in (0, 1)
        for phase in (0, 1)
    ]
    images = [image(np.full((8, 8), i), **which) for i, which in enumerate(counters)]
    (series,) = read_series(write(tmp_path / "a.h5", images[::-1]))
    assert [frames[:, 0, 0].tolist() for frames in series.frames] == [[2 * i, 2 * i + 1] for i in range(16)]
    assert series.slices[:3] == ("slice 0", "slice 1", "slice 0, contrast 1")
    assert series.slices[-1] == "slice 1, contrast 1, set 1, repetition 1"


def test_repetitions_are_frames_where_only_they_count(tmp_path):
    images = [image(np.full((8, 8), i), repetition=i, phase=3) for i in (2, 0, 1)]
    (series,) = read_series(write(tmp_path / "a.h5", images))
    assert series.frames[0][:, 0, 0].tolist() == [0, 1, 2]
    assert series.slices == ("slice 0",)


def test_every_series_is_a_scan_of_its_own(truth, known, tmp_path):
    images = [
        image(frame * number, series=number, slice=i, phase=k)
        for number in (1, 4)
        for i, frames in enumerate(truth)
        for k, frame in enumerate(frames)
    ]
    evaluations, _ = evaluate([write(tmp_path / "a.h5", images)], known)
    assert [evaluation.series.name for evaluation in evaluations] == ["a.h5, series 1", "a.h5, series 4"]
    assert all(evaluation.total["nrmse"] < 1e-6 for evaluation in evaluations)


def test_maps_that_came_along_are_left_out(truth, known, tmp_path):
    images = [image(frame, slice=i, phase=k) for i, frames in enumerate(truth) for k, frame in enumerate(frames)]
    role = "<ismrmrdMeta><meta><name>GADGETRON_DataRole</name><value>Gfactor</value></meta></ismrmrdMeta>"
    maps = [Image(one.header, one.data, role) for one in (image(truth[0][0], series=21),)]
    [evaluation], _ = evaluate([write(tmp_path / "a.h5", images + maps)], known)
    assert evaluation.series.name == "a.h5"


@pytest.mark.parametrize("what", ["missing", "a folder", "text", "raw", "empty group", "other group", "odd", "series"])
def test_what_is_no_image_file(what, noisy, tmp_path):
    path, group, error = tmp_path / "a.h5", "dataset", DataError
    if what in {"missing", "a folder", "text"}:
        error = ResourceError
        if what == "text":
            path.write_bytes(b"dear diary")
        elif what == "a folder":
            path.mkdir()
    elif what == "raw":
        write_simulation(ScanPlan(matrix_x=16, matrix_y=16, frames=2, coils=2, acs_lines=8), path)
    elif what == "other group":
        write_scan(path, noisy)
        group = "elsewhere"
    else:
        with h5py.File(path, "w") as file:
            node = file.create_group("dataset")
            if what == "odd":
                node["image_1"] = np.ones(3)
            elif what == "series":
                node.create_group("image_1")
    with pytest.raises(error, match=re.escape(str(path))):
        read_series(path, group)


def test_images_that_make_no_series(tmp_path):
    twice = [image(np.ones((8, 8)), phase=1), image(np.ones((8, 8)), phase=1)]
    with pytest.raises(DataError, match=r"slice 0 has two images of frame 1"):
        read_series(write(tmp_path / "twice.h5", twice))
    deep = Image(twice[0].header, np.ones((1, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match=r"two-dimensional.*\(1, 3, 8, 8\)"):
        read_series(write(tmp_path / "deep.h5", [deep]))


@pytest.mark.parametrize("name", ["image", "reference"])
def test_truth_under_either_name(name, truth, tmp_path):
    path = tmp_path / "truth.npz"
    np.savez(path, mask=np.ones(3), **{name: truth * 1j})
    np.testing.assert_array_equal(read_truth(path), truth * 1j)


@pytest.mark.parametrize("arrays", [{}, {"mask": np.ones(3), "maps": np.ones(2)}, {"image": np.array(["a"])}])
def test_truth_without_numbers_to_compare(arrays, tmp_path):
    path = tmp_path / "truth.npz"
    np.savez(path, **arrays)
    found = ", ".join(arrays) or "nothing"
    with pytest.raises(ResourceError, match=f"'image' or 'reference'; it has {found}"):
        read_truth(path)


# --- measuring --------------------------------------------------------------------------------------------------------


def test_one_factor_and_all_scores(noisy, truth, known, tmp_path):
    (evaluation,), given = evaluate([write_scan(tmp_path / "a.h5", noisy)], known)
    np.testing.assert_array_equal(given, truth)
    expected = measure(scaled(list(noisy), truth), list(truth))
    assert list(expected) == ["nrmse", "psnr", "ssim", "haarpsi", *DYNAMIC]
    assert evaluation.total == pytest.approx(expected)
    assert evaluation.total["nrmse"] == pytest.approx(
        np.sqrt(np.mean([scores["nrmse"] ** 2 for scores in evaluation.scores])), rel=1e-2
    )
    np.testing.assert_allclose(evaluation.series.frames, scaled(list(noisy), truth), rtol=1e-6)


def test_the_dynamic_region_is_that_of_each_slice():
    """Errors where only the other slice moves do not count."""
    still = np.full((6, 24, 32), 0.5, np.float32)
    first, second = still.copy(), still.copy()
    first[:, 5:9, 5:9] += np.linspace(0, 0.4, 6, dtype=np.float32)[:, None, None]
    second[:, 14:18, 20:24] += np.linspace(0, 0.4, 6, dtype=np.float32)[:, None, None]
    wrong = [first.copy(), second.copy()]
    wrong[0][:, 14:18, 20:24] += 0.2
    scores = measure(wrong, [first, second])
    assert scores["nrmse"] > 0
    assert scores["dynamic_nrmse"] == 0
    assert scores["dynamic_psnr"] == np.inf
    assert scores["dynamic_ssim"] == pytest.approx(1)


def test_nothing_moves(truth):
    still = np.repeat(truth[0][:1], 4, axis=0)
    assert set(DYNAMIC).isdisjoint(measure([still], [still]))
    moving = still.copy()
    moving[:, 0, 0] = [1, 2, 3, 4]  # where no window has its centre
    scores = measure([moving], [moving])
    assert "dynamic_psnr" in scores
    assert "dynamic_ssim" not in scores


def test_dists_is_measured_where_it_can_be(noisy, known, tmp_path):
    path = write_scan(tmp_path / "a.h5", noisy)
    evaluations, _ = evaluate([path], known, dists=lambda image, _: float(len(image)))
    assert [evaluations[0].total["dists"], *(scores["dists"] for scores in evaluations[0].scores)] == [12, 6, 6]
    assert table(evaluations).splitlines()[0].endswith("DISTS")


def test_a_slice_with_an_empty_truth(truth, tmp_path):
    path = tmp_path / "truth.npz"
    truth[1] = 0
    np.savez(path, reference=truth)
    evaluations, known = evaluate([write_scan(tmp_path / "a.h5", truth)], path)
    assert evaluations[0].scores[1] == {}
    assert "–" in table(evaluations, slices=True).splitlines()[-1]
    write_page(tmp_path / "page.html", evaluations, known, "truth.npz")


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_table_is_aligned(noisy, truth, known, tmp_path):
    outputs = [write_scan(tmp_path / "a.h5", noisy), write_scan(tmp_path / "much_longer.h5", truth)]
    evaluations, _ = evaluate(outputs, known)
    lines = table(evaluations).splitlines()
    assert len(lines) == 3
    assert len(set(map(len, lines))) == 1
    assert re.split(r"\s{2,}", lines[0].strip()) == [SCORES[key].title for key in SCORES if key != "dists"]
    assert lines[1].startswith("a.h5 ")
    assert f"{evaluations[0].total['psnr']:.2f} dB" in lines[1]
    names = [line.split("  ")[0] or line.split("  ")[1] for line in table(evaluations, slices=True).splitlines()[1:]]
    assert [name.strip() for name in names] == ["a.h5", "slice 0", "slice 1", "much_longer.h5", "slice 0", "slice 1"]


def test_files_of_one_name_are_distinguished(noisy, known, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_scan(tmp_path / folder / "a.h5", noisy)
    evaluations, _ = evaluate([tmp_path / "one" / "a.h5", tmp_path / "two" / "a.h5"], known)
    assert [evaluation.series.name for evaluation in evaluations] == [
        str(tmp_path / f / "a.h5") for f in ("one", "two")
    ]


def test_csv_holds_everything(noisy, known, tmp_path):
    evaluations, _ = evaluate([write_scan(tmp_path / "a.h5", noisy)], known)
    write_csv(tmp_path / "scores.csv", evaluations)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["output"], row["slice"]) for row in rows] == [("a.h5", name) for name in ("all", "slice 0", "slice 1")]
    assert float(rows[0]["haarpsi"]) == evaluations[0].total["haarpsi"]
    assert float(rows[2]["dynamic_ssim"]) == evaluations[0].scores[1]["dynamic_ssim"]


def test_page_shows_every_output_next_to_the_truth(noisy, truth, known, tmp_path):
    names = [f"<{i}>.h5" for i in range(5)]
    outputs = [write_scan(tmp_path / name, truth if i == 3 else noisy) for i, name in enumerate(names)]
    evaluations, given = evaluate(outputs, known)
    write_page(tmp_path / "page.html", evaluations, given, "<truth>.npz")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    checked = Checker(page)
    assert all(address.startswith("data:image/png;base64,") for address in checked.addresses)
    assert len(checked.addresses) == len(checked.loops) == 2 * 2  # slices, groups of outputs
    assert [tag for tag, _ in checked.tags].count("script") == 1
    assert re.search("Truth <0>.h5 <1>.h5 <2>.h5 .*Truth <3>.h5 <4>.h5", checked.text)
    assert [one["caption"] for one in checked.loops[1]["panels"]] == [
        "Truth",
        "<3>.h5",
        "<4>.h5",
        "what moves",
        "error of <3>.h5 × 5",
        "error of <4>.h5 × 5",
    ]
    for text in ("<truth>.npz", "2 slices, 6 frames, 32 × 24 pixels", "Slice 1", "HaarPSI", "Dynamic SSIM"):
        assert text in checked.text
    best = [attributes for _, attributes in checked.tags if attributes.get("class") == "best"]
    assert len(best) == 3 * 7  # all slices and each of two
    rows = re.findall(r"<tr><th scope=\"row\">&lt;3&gt;.h5</th>.*?</tr>", page)
    assert sum(row.count('class="best"') for row in rows) == len(best)  # the truth itself


def test_page_of_one_output_marks_nothing(noisy, known, tmp_path):
    evaluations, given = evaluate([write_scan(tmp_path / "a.h5", noisy)], known)
    write_page(tmp_path / "page.html", evaluations, given, "truth.npz")
    checked = Checker((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not any(attributes.get("class") == "best" for _, attributes in checked.tags)
    assert "HaarPSI" in checked.text


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A simulated scan with its truth, and its reconstruction."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    plan = ScanPlan(matrix_x=48, matrix_y=40, frames=4, slices=2, coils=4, acceleration=2, acs_lines=12, seed=3)
    write_simulation(plan, path)
    assert main(["replay", str(path), "-o", str(path.with_name("cg.h5"))]) == 0
    assert main(["replay", str(path), "-o", str(path.with_name("zero.h5")), "-p", "zero_filled"]) == 0
    return path


def test_command_measures_what_replay_wrote(scan, tmp_path, run):
    truth, page, numbers = scan.with_name("scan_truth.npz"), tmp_path / "page.html", tmp_path / "scores.csv"
    outputs = [scan.with_name("zero.h5"), scan.with_name("cg.h5")]
    status, out, err = run("evaluate", *outputs, "--truth", truth, "--report", page, "--csv", numbers, "--slices")
    assert (status, err) == (0, "")
    evaluations, _ = evaluate(outputs, truth)
    assert out.startswith(table(evaluations, slices=True))
    assert evaluations[1].total["nrmse"] < 0.5 * evaluations[0].total["nrmse"]
    assert evaluations[1].total["haarpsi"] > evaluations[0].total["haarpsi"]
    assert page.is_file()
    assert numbers.is_file()


def test_replay_says_the_same_and_takes_reference_too(scan, tmp_path, run):
    truth = tmp_path / "ref.npz"
    np.savez(truth, reference=read_truth(scan.with_name("scan_truth.npz")))
    status, out, _ = run("replay", scan, "-o", tmp_path / "a.h5", "--truth", truth)
    assert status == 0
    (evaluation,), _ = evaluate([tmp_path / "a.h5"], truth)
    for name, value in evaluation.total.items():
        assert f"{name} {value:.4g}" in out


def test_a_truth_of_another_kind_is_named(scan, tmp_path, run):
    np.save(tmp_path / "truth.npy", np.ones(3))
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    np.savez(tmp_path / "objects.npz", image=np.array([{}], object))
    for path, text in (
        (scan, f"got an HDF5 file, as raw data and images are; {scan.with_name('scan_truth.npz')} is there"),
        (tmp_path / "truth.npy", "got a single array"),
        (tmp_path / "notes.txt", "got a file of another kind"),
        (tmp_path / "objects.npz", "expected an .npz with 'image' or 'reference'"),
    ):
        status, _, err = run("evaluate", scan.with_name("cg.h5"), "--truth", path)
        assert status == 1
        assert text in err
        assert "allow_pickle=" not in err or "objects" in str(path)


def test_command_reads_other_groups(scan, tmp_path, run):
    path = tmp_path / "a.h5"
    write(path, [one for images in read_images(scan.with_name("cg.h5")).values() for one in images], group="mine")
    truth = scan.with_name("scan_truth.npz")
    assert run("evaluate", path, "--truth", truth, "--group", "mine")[0] == 0
    assert run("evaluate", path, "--truth", truth)[0] == 0, "it is the only group"
    status, _, err = run("evaluate", path, "--truth", truth, "--group", "yours")
    assert status == 1
    assert "no images in group 'yours'; groups with images: mine" in err


@pytest.mark.parametrize("what", ["slices", "frames", "axes"])
def test_shapes_that_do_not_fit_are_both_named(what, noisy, truth, tmp_path, run):
    path = tmp_path / "truth.npz"
    np.savez(path, image={"slices": truth[:1], "frames": truth[:, :4], "axes": truth[0]}[what])
    with np.load(path) as arrays:
        shape = arrays["image"].shape
    status, _, err = run("evaluate", write_scan(tmp_path / "a.h5", noisy), "--truth", path)
    assert status == 1
    for text in ("a.h5", str(path), "2 slices of (6, 24, 32)", f"got {shape}"):
        assert text in err


def test_errors_of_use(noisy, known, tmp_path, run):
    output = write_scan(tmp_path / "a.h5", noisy)
    before = output.read_bytes()
    assert run("evaluate", output)[0] == 2
    assert run("evaluate", "--truth", known)[0] == 2
    for option, target in (("--report", output), ("--csv", known)):
        status, _, err = run("evaluate", output, "--truth", known, option, target)
        assert status == 2
        assert f"{target} is one of the files to read" in err
    assert output.read_bytes() == before
    status, _, err = run("evaluate", output, "--truth", tmp_path / "absent.npz")
    assert status == 1
    assert "cannot read the truth" in err
    status, _, err = run("evaluate", output, "--truth", known, "--dists-weights", tmp_path / "absent.safetensors")
    assert status == 1
    assert "no DISTS weights" in err
    status, _, err = run("evaluate", output, "--truth", known, "--csv", tmp_path / "no" / "such.csv")
    assert status == 1
    assert "cannot write" in err
    noisy[0, 0, 0, 0] = np.nan
    status, _, err = run("evaluate", write_scan(tmp_path / "nan.h5", noisy), "--truth", known)
    assert status == 1
    assert "nan.h5" in err
    assert "NaN or infinite values" in err


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_the_loop_has_all_outputs_and_the_error_of_the_last(truth, known, noisy, tmp_path):
    good, bad = write_scan(tmp_path / "good.h5", truth * 3), write_scan(tmp_path / "bad.h5", noisy)
    evaluations, magnitudes = evaluate([good, bad], known)
    write_gif(tmp_path / "a.gif", evaluations, magnitudes)
    write_gif(tmp_path / "b.gif", evaluations[::-1], magnitudes)
    with Picture.open(tmp_path / "a.gif") as first, Picture.open(tmp_path / "b.gif") as second:
        assert first.n_frames == truth.shape[1]
        assert first.info["loop"] == 0
        pages = [np.asarray(picture.convert("L"), np.float32) for picture in (first, second)]
    n_rows, n_columns = truth.shape[2:]
    width, height = (pages[0].shape[1] - 2 * GAP) // 3, (pages[0].shape[0] - GAP) // 2
    assert width / n_columns == pytest.approx(height / n_rows, rel=0.15)
    bottoms = [page[-height:] for page in pages]
    columns = [[page[:, i * (width + GAP) :][:, :width] for i in range(3)] for page in bottoms]
    assert np.array_equal(columns[0][0], columns[1][1])
    assert np.array_equal(columns[0][1], columns[1][0])
    assert columns[0][2].mean() > 5  # of the bad one
    assert columns[1][2].mean() < 1
    assert pages[0][:20].max() > 150  # names


def test_a_loop_that_cannot_be_written(truth, known, tmp_path):
    evaluations, magnitudes = evaluate([write_scan(tmp_path / "a.h5", truth)], known)
    with pytest.raises(ResourceError, match="cannot write"):
        write_gif(tmp_path / "absent" / "a.gif", evaluations, magnitudes)
