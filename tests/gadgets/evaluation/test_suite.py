"""The standard suite on small scans: what is computed, kept, summed up and shown."""

import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from gadgets.commands.main import main
from gadgets.connection.server import SharedEngine
from gadgets.evaluation import held_out, suite
from gadgets.evaluation.held_out import CONDITIONS, PARTS, HeldOutScan, LoadedScan
from gadgets.evaluation.suite import (
    COMPARED,
    GAINED,
    SCORE_FORMS,
    VARIANTS,
    Cell,
    Outcome,
    _evaluate,
    choose_methods,
    differences,
    gains,
    method_of,
    run_suite,
    summarise,
    table,
)
from gadgets.images.pictures import still
from gadgets.replay import replay
from gadgets.reports.record import ReportCollector
from gadgets.reports.suite import _columns, write_picture, write_suite_page
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, write_simulation
from recon_core.data import CineSlice
from recon_core.diffusion import method as diffusion
from recon_core.engine import Engine
from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.methods import METHODS
from recon_core.metrics.scores import SCORES, score
from recon_core.physics.fourier import fft
from recon_core.simulate.sampling import sampling_mask
from recon_core.trust.ranges import Limits, TrainingRange
from recon_core.weights.manifest import find_weights, write_entry
from tests.gadgets.evaluation.test_held_out import write_patient
from tests.gadgets.reports.test_scan import Checker, beating
from tests.helpers.networks import NETWORKS, write_tiny_chain, write_tiny_weights

pytestmark = pytest.mark.usefixtures("_coil_maps_once")
PLAIN = [name for name, info in METHODS.items() if not (info.network or info.chooses)]
FACTS = {"version": "0", "torch": "2", "device": "cpu", "threads": 1, "seed": 7}
HERE = ("cine", "view")
ALL = len(HERE) * 3  # series of a quick run


def tiny_scan(part, name, seed, source=""):
    """A beating disc before three coils, in 48 lines; its CT is off by pixels of 1 mm."""

    def load():
        truth = beating(8, (48, 32), seed).astype(np.complex64)
        y, x = np.indices((48, 32)) / 40
        maps = np.stack([np.exp(-((y - cy) ** 2) - (x - cx) ** 2) for cy, cx in ((0, 0), (1.2, 0.2), (0.5, 1))])
        kspace = fft(torch.from_numpy((maps * truth[:, None]).astype(np.complex64)), (-2, -1)).numpy()
        kspace += (
            np.random.default_rng(seed).standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0] / 200
        )

        def measured(name):
            condition = CONDITIONS[name]
            mask = sampling_mask(
                condition.sampling, 8, 48, acceleration=condition.acceleration, acs_lines=min(condition.acs_lines, 12)
            )
            return [CineSlice(kspace * mask[:, None, :, None], mask)]

        combined = (truth * np.sqrt((maps**2).sum(0)))[None].astype(np.complex64)
        return LoadedScan(combined, measured, 0.75, 0.1, lambda off: [tiny_ct(truth, off)])

    return HeldOutScan(part, name, tuple(CONDITIONS), load, source)


def tiny_ct(truth, off):
    disc = (truth[0].real / truth.real.max()).astype(np.float32)
    return np.roll(disc, round(off), 1), np.ones(disc.shape, bool)


@pytest.fixture(autouse=True)
def _few_small_scans(monkeypatch):
    def scans(data=None):
        source = str((data / "patient").stat().st_size) if data else ""
        patient = [tiny_scan("cine", "patient", 9, source)] if data else []
        return [tiny_scan("cine", "subject", 0), *patient, tiny_scan("view", "first", 1), tiny_scan("view", "last", 2)]

    monkeypatch.setattr("gadgets.evaluation.suite.held_out_scans", scans)


@pytest.fixture
def data(tmp_path):
    """A data folder with a semi-real scan of two slices."""
    folder = tmp_path / "data" / "semi_real_cine"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "patient").write_text("x")
    plan = ScanPlan(matrix_x=32, matrix_y=40, frames=4, slices=2, coils=3, acceleration=2, acs_lines=12, seed=5)
    with np.load(write_simulation(plan, folder / "cine_mine.h5")) as arrays:
        np.savez(folder / "cine_mine_ref.npz", reference=arrays["image"])
    return tmp_path / "data"


@pytest.fixture
def counted(monkeypatch):
    """Which methods the engine has run."""
    ran = []
    reconstruct = Engine.reconstruct

    def count(self, cine, options):
        ran.append(options.method)
        return reconstruct(self, cine, options)

    monkeypatch.setattr(Engine, "reconstruct", count)
    return ran


def scores_of(outcome):
    return {cell.key: cell.scores for cell in outcome.cells}


# --- what is evaluated ------------------------------------------------------------------------------------------------


def test_without_weights_the_networks_are_named_as_missing():
    methods, missing = choose_methods()
    assert list(methods) == PLAIN
    assert missing == NETWORKS
    assert choose_methods(["grappa", "zero_filled"]) == ({"zero_filled": None, "grappa": None}, [])


def test_methods_that_cannot_be_chosen():
    with pytest.raises(SettingsError, match=r"no method 'magic'; there are zero_filled, cg_sense"):
        run_suite(["magic"])
    with pytest.raises(ModelError, match=r"no weights for cinenet.*import-weights cinenet"):
        run_suite(["cinenet", "zero_filled"])


def test_quick_takes_one_scan_of_each_part_and_the_samplings_of_8():
    outcome = run_suite(["zero_filled"], quick=True)
    assert list(dict.fromkeys((cell.part, cell.condition) for cell in outcome.cells)) == [
        (part, condition) for part in HERE for condition in ("uniform_8", "interleaved_8", "random_8")
    ]
    assert {(cell.part, cell.scan) for cell in outcome.cells} == {("cine", "subject"), ("view", "last")}
    assert all(set(SCORES) - {"dists"} == set(cell.scores) for cell in outcome.cells)
    assert all(cell.seconds > 0 for cell in outcome.cells)
    net = {cell.condition: cell.net_acceleration for cell in outcome.cells}
    # of 48 lines every 8th, and 12 in the middle, of which the 24th is both
    assert net == {"uniform_8": pytest.approx(48 / 17), "interleaved_8": pytest.approx(8.0), "random_8": 8.0}


def test_all_conditions_of_all_scans_and_the_same_numbers_again():
    outcome = run_suite(["zero_filled"])
    assert len(outcome.cells) == 3 * len(CONDITIONS)
    assert len(scores_of(outcome)) == len(outcome.cells)
    again = run_suite(["zero_filled"], quick=True)
    for key, scores in scores_of(again).items():  # sums may differ in the last digit with where arrays lie in memory
        assert scores == pytest.approx(scores_of(outcome)[key], rel=1e-9)
    assert again.facts == outcome.facts
    assert {"version", "torch", "threads", "seed"} < set(outcome.facts)


def test_a_network_with_weights_takes_part(tmp_path, monkeypatch):
    write_tiny_weights(tmp_path, "crnn_mri", range=TrainingRange(acceleration=(2, 9), patterns=("random",)))
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    methods, missing = choose_methods()
    assert list(methods) == [name for name in METHODS if name in (*PLAIN, "crnn_mri")]
    assert missing == [name for name in NETWORKS if name != "crnn_mri"]

    outcome = run_suite(["cg_sense", "crnn_mri"], quick=True)
    cells = [cell for cell in outcome.cells if cell.method == "crnn_mri"]
    (used,) = {cell.weights for cell in cells}
    assert used.startswith(f"crnn_mri, sha256 {methods['crnn_mri'].sha256}, used as ")
    assert all(cell.scores and not cell.failure for cell in cells)  # where a stream would not send its image too
    why = {cell.condition: cell.outside for cell in cells if cell.part == "view"}
    assert re.match(r"the scan is not like the training.*interleaved pattern", why["interleaved_8"][0])
    ours, fallback = (scores_of(outcome)["cine", "subject", "interleaved_8", name] for name in ("crnn_mri", "cg_sense"))
    assert ours["nrmse"] != pytest.approx(fallback["nrmse"], rel=1e-3)
    outside = [cell for cell in cells if cell.outside]
    assert sum(row.outside for row in summarise(cells)) == len(outside)
    text = table(outcome)
    assert f"* crnn_mri: for {len(outside)} of 6 series a stream sends the image of the fallback instead" in text
    lines = [line for line in text.splitlines() if line.startswith("crnn_mri")]
    assert len(lines) == 2 * len(HERE)
    assert sum(line.count("*") for line in lines) == 2 * len(outside)


def test_an_image_that_is_as_it_should_be_has_no_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(Limits, "objections", lambda *_: [])
    write_tiny_weights(tmp_path, "crnn_mri", range=TrainingRange(acceleration=(2, 9)))
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    outcome = run_suite(["crnn_mri"], quick=True)
    assert not any(cell.outside for cell in outcome.cells)
    assert "*" not in table(outcome)


def test_a_network_that_fails_is_not_measured_by_its_fallback(tmp_path, monkeypatch):
    write_tiny_weights(tmp_path, "crnn_mri")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    next(tmp_path.glob("*.safetensors")).write_bytes(b"damaged")
    outcome = run_suite(["crnn_mri"], quick=True)
    assert all(cell.failure and not cell.scores for cell in outcome.cells)
    assert "– crnn_mri: no image of 6 of 6 series" in table(outcome)


def test_a_method_that_cannot_do_a_scan_has_a_dash_and_a_reason():
    outcome = run_suite(["grappa"], quick=True)
    cells = {cell.condition: cell for cell in outcome.cells if cell.part == "view"}
    assert "every R-th line" in cells["random_8"].failure
    assert cells["random_8"].scores == {}
    assert cells["interleaved_8"].scores
    text = table(outcome)
    assert text.count("– / –") == 2 * len(HERE)
    assert re.search(r"– grappa: no image of 2 of 6 series, such as: grappa needs every R-th line", text)


def test_semi_real_readouts_that_wait_for_the_end_are_read_too(data):
    """Those of a foreign mark, such as that of the surface coil correction, which may be all that there is."""
    plain = run_suite(["zero_filled"], data=data)
    with h5py.File(data / "semi_real_cine" / "cine_mine.h5", "r+") as file:
        rows = file["dataset/data"][:]
        image = (rows["head"]["flags"] & (1 << 18)) == 0  # not noise
        rows["head"]["flags"][image] |= 1 << 28
        file["dataset/data"][...] = rows
    marked = run_suite(["zero_filled"], data=data)
    (ours,), (theirs,) = ([one.scores for one in run.cells if one.part == "semi_real"] for run in (marked, plain))
    assert ours == pytest.approx(theirs)


def test_semi_real_scans_are_read_as_a_stream_is(data, tmp_path):
    outcome = run_suite(["cg_sense", "zero_filled"], data=data, quick=True)
    cell = next(cell for cell in outcome.cells if (cell.part, cell.method) == ("semi_real", "cg_sense"))
    assert (cell.scan, cell.condition) == ("mine", "mine")
    path = data / "semi_real_cine" / "cine_mine.h5"
    collector = ReportCollector()
    settings = Settings.of(method="cg_sense")
    replay(path, tmp_path / "images.h5", settings, SharedEngine(), collector=collector)
    with np.load(path.with_name("cine_mine_ref.npz")) as arrays:
        expected = score(collector.series(), arrays["reference"])
    assert cell.scores == pytest.approx(expected, rel=1e-4)
    assert cell.source
    assert "mine" in table(outcome)
    assert "Simulated scans only" not in table(outcome)


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def varied(tmp_path, monkeypatch):
    """Weights of the methods that have variants, few steps of the sampler, and two conditions."""
    folder = tmp_path / "weights"
    write_tiny_weights(folder, "atlf_net", "dstdm")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(folder))
    for sampler, steps in {"fast": 2, "paper": 3}.items():
        monkeypatch.setitem(diffusion._STEPS, sampler, steps)
    scans = suite.held_out_scans

    def fewer(data=None):
        return [replace(one, conditions=("uniform_8", "random_8")) for one in scans(data)]

    monkeypatch.setattr("gadgets.evaluation.suite.held_out_scans", fewer)


@pytest.mark.usefixtures("varied")
def test_variants_follow_their_method_and_share_its_weights():
    methods, missing = choose_methods()
    assert list(methods)[len(PLAIN) :] == ["atlf_net", "atlf_net/ct", "atlf_net/ct_shifted", "dstdm", "dstdm/paper"]
    assert missing == [name for name in NETWORKS if name not in methods]
    assert all(methods[name] == find_weights(method_of(name)) for name in VARIANTS)
    assert list(choose_methods(["dstdm", "cg_sense"])[0]) == ["cg_sense", "dstdm"]
    assert list(choose_methods(["atlf_net/ct"])[0]) == ["atlf_net/ct"]
    with pytest.raises(SettingsError, match=r"no method 'dstdm/magic'; did you mean dstdm/paper"):
        choose_methods(["dstdm/magic"])


def test_variants_of_a_method_without_weights_are_not_missing_too():
    assert choose_methods()[1] == NETWORKS
    with pytest.raises(ModelError, match="no weights for dstdm"):
        choose_methods(["dstdm/paper"])


@pytest.mark.slow
@pytest.mark.usefixtures("varied")
def test_a_variant_reaches_the_engine_on_the_scans_that_it_is_for(monkeypatch):
    ran = []
    reconstruct = Engine.reconstruct

    def record(self, cine, options):
        ran.append((options, cine))
        return reconstruct(self, cine, options)

    monkeypatch.setattr(Engine, "reconstruct", record)
    outcome = run_suite(["atlf_net", "dstdm", *VARIANTS])
    assert all(one.scores for one in outcome.cells)
    conditions = ["uniform_8", "random_8"]
    everywhere = [("cine", "subject"), ("view", "first"), ("view", "last")]
    expected = {
        "atlf_net": [(*scan, condition) for scan in everywhere for condition in conditions],
        "atlf_net/ct": [(*scan, "uniform_8") for scan in everywhere],
        "atlf_net/ct_shifted": [(*scan, "uniform_8") for scan in everywhere],
        "dstdm": [(*scan, condition) for scan in everywhere for condition in conditions],
        "dstdm/paper": [(*scan, "uniform_8") for scan in (everywhere[0], everywhere[2])],
    }
    assert {name: [c.key[:3] for c in outcome.cells if c.method == name] for name in expected} == expected

    for one, (options, cine) in zip(outcome.cells, ran, strict=True):
        assert options.method == method_of(one.method)
        assert options.dstdm.sampler == ("paper" if one.method == "dstdm/paper" else "fast")
        if one.method in ("atlf_net/ct", "atlf_net/ct_shifted"):
            seed = {"subject": 0, "first": 1, "last": 2}[one.scan]
            ct, cover = tiny_ct(beating(8, (48, 32), seed).astype(np.complex64), 8 if "shifted" in one.method else 0)
            np.testing.assert_array_equal(cine.ct.image, ct)
            np.testing.assert_array_equal(cine.ct.cover, cover)
        else:
            assert cine.ct is None

    # the place of a CT hardly counts for the statistics that the network takes from it
    psnr = {name: scores_of(outcome)["view", "last", "uniform_8", name]["psnr"] for name in expected}
    assert psnr["atlf_net/ct"] != pytest.approx(psnr["atlf_net"], abs=0.01)
    assert psnr["dstdm/paper"] != pytest.approx(psnr["dstdm"], abs=0.01)
    found = {one.name: one for one in differences(outcome.cells)}
    assert {name: one.scans for name, one in found.items()} == {name: len(expected[name]) for name in VARIANTS}


@pytest.mark.usefixtures("varied")
def test_a_stream_warns_of_a_ct_that_is_off_and_uses_it():
    outcome = run_suite(["atlf_net", "atlf_net/ct", "atlf_net/ct_shifted"], quick=True)
    suspect = {name: [one.ct_suspect for one in outcome.cells if one.method == name] for name in outcome.methods}
    assert suspect == {"atlf_net": [False] * 6, "atlf_net/ct": [False] * 2, "atlf_net/ct_shifted": [True] * 2}
    text = table(outcome)
    assert "atlf_net/ct: for 0 of 2 series a stream says that the CT may lie elsewhere" in text
    assert "atlf_net/ct_shifted: for 2 of 2 series a stream says" in text
    assert "atlf_net: for 0" not in text


@pytest.mark.usefixtures("varied")
def test_a_scan_without_ct(monkeypatch):
    scans = suite.held_out_scans

    def without(data=None):
        return [replace(one, load=lambda load=one.load: replace(load(), placed=None)) for one in scans(data)]

    monkeypatch.setattr("gadgets.evaluation.suite.held_out_scans", without)
    outcome = run_suite(["atlf_net/ct"], quick=True)
    assert {one.failure for one in outcome.cells} == {"the scan has no CT"}


@pytest.mark.usefixtures("varied")
def test_a_file_from_before_there_were_variants_is_continued(tmp_path, counted):
    path = tmp_path / "suite.json"
    run_suite(["atlf_net"], quick=True, stored=path)
    content = json.loads(path.read_text())
    assert content.pop("variants") == []
    assert content.pop("gains") == []
    for one in content["cells"]:
        del one["ct_suspect"]
    path.write_text(json.dumps(content))
    counted.clear()
    outcome = run_suite(["atlf_net", "atlf_net/ct_shifted"], quick=True, stored=path)
    assert len(counted) == 2
    (kept,) = json.loads(path.read_text())["variants"]
    assert (kept["name"], kept["scans"]) == ("atlf_net/ct_shifted", 2)
    again = run_suite(["atlf_net", "atlf_net/ct_shifted"], quick=True, stored=path)
    assert len(counted) == 2
    assert again.cells == outcome.cells
    assert any(one.ct_suspect for one in again.cells)


@pytest.mark.slow
@pytest.mark.usefixtures("varied")
def test_variants_on_the_page(tmp_path):
    outcome = run_suite(["atlf_net", "dstdm", "dstdm/paper"], images=True)
    assert {name for one in outcome.shown for name in one.images} == {"atlf_net", "dstdm"}  # under another condition
    write_suite_page(tmp_path / "page.html", outcome)
    page = Checker((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.text.count(outcome.methods["dstdm"].sha256[:16]) == 1
    assert "dstdm/paper (1 of 2 scans)" in page.text
    assert f"{COMPARED}, {CONDITIONS['uniform_8'].title}" in page.text
    (found,) = differences(outcome.cells)
    assert all(f"{found.median[name]:+.2f} {found.worst[name]:+.2f}" in page.text for name in ("psnr", "dynamic_psnr"))
    write_picture(tmp_path / "still.png", outcome)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_computed_again(tmp_path, counted):
    path = tmp_path / "suite.json"
    first = run_suite(["zero_filled"], quick=True, stored=path)
    assert len(counted) == ALL
    again = run_suite(["zero_filled"], quick=True, stored=path)
    assert len(counted) == ALL
    assert again.cells == first.cells
    more = run_suite(["zero_filled", "cg_sense"], quick=True, stored=path)
    assert counted[ALL:] == ["cg_sense"] * ALL
    assert len(more.cells) == 2 * ALL
    run_suite(["zero_filled"], quick=True, stored=path, fresh=True)
    assert counted[2 * ALL :] == ["zero_filled"] * ALL
    assert len(json.loads(path.read_text())["cells"]) == ALL


def test_what_was_not_asked_for_stays_in_the_file(tmp_path):
    path = tmp_path / "suite.json"
    first = run_suite(["cg_sense"], quick=True, stored=path)
    second = run_suite(["zero_filled"], quick=True, stored=path)
    content = json.loads(path.read_text())
    assert content["facts"] == first.facts
    assert [cell["method"] for cell in content["cells"]] == ["cg_sense"] * ALL + ["zero_filled"] * ALL
    assert {cell.method for cell in second.cells} == {"zero_filled"}
    assert content["cells"][0]["scores"] == first.cells[0].scores  # to the last digit
    assert content["summary"][0]["median"] == first.cells[0].scores
    assert content["conditions"]["random_8"]["acceleration"] == 8


def test_an_end_in_the_middle_keeps_what_was_done(tmp_path, counted, monkeypatch):
    path = tmp_path / "suite.json"
    evaluate = _evaluate

    def stop(*arguments):
        if len(counted) == 4:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr("gadgets.evaluation.suite._evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_suite(["zero_filled"], quick=True, stored=path)
    assert len(json.loads(path.read_text())["cells"]) == 4
    monkeypatch.setattr("gadgets.evaluation.suite._evaluate", evaluate)
    run_suite(["zero_filled"], quick=True, stored=path)
    assert len(counted) == ALL


def test_other_weights_and_other_data_are_computed_again(tmp_path, data, counted, monkeypatch):
    path, weights = tmp_path / "suite.json", tmp_path / "weights"
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(weights))
    write_tiny_weights(weights, "crnn_mri")
    methods = ["zero_filled", "crnn_mri"]
    run_suite(methods, quick=True, data=data, stored=path)
    path.write_text(path.read_text().replace(find_weights("crnn_mri").sha256, "0" * 64))
    counted.clear()
    run_suite(methods, quick=True, data=data, stored=path)
    assert counted == ["crnn_mri"] * (ALL + 2)  # two slices of the semi-real scan

    write_tiny_weights(weights, "crnn_mri", range=TrainingRange(acceleration=(2, 9)))  # the same ones
    counted.clear()
    run_suite(methods, quick=True, data=data, stored=path)
    assert counted == ["crnn_mri"] * (ALL + 2)

    (data / "patient").write_text("xy")
    counted.clear()
    run_suite(methods, quick=True, data=data, stored=path)
    assert counted == ["zero_filled"] * 3 + ["crnn_mri"] * 3


def test_what_goes_on_from_other_weights_is_computed_again_with_them(tmp_path, counted, monkeypatch):
    path, weights = tmp_path / "suite.json", tmp_path / "weights"
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(weights))
    write_tiny_chain(weights, "crunet_mr", "crnn_mri")
    first = find_weights("crunet_mr", "first")
    outcome = run_suite(["crnn_mri"], quick=True, stored=path)
    assert f", from first, sha256 {first.sha256}" in outcome.cells[0].weights
    counted.clear()
    run_suite(["crnn_mri"], quick=True, stored=path)
    assert counted == []
    write_entry(weights, replace(first, window=4))
    run_suite(["crnn_mri"], quick=True, stored=path)
    assert counted == ["crnn_mri"] * ALL


def test_results_of_a_run_with_other_facts_are_not_mixed(tmp_path):
    path = tmp_path / "suite.json"
    outcome = run_suite(["zero_filled"], quick=True, stored=path)
    content = json.loads(path.read_text())
    content["facts"]["torch"] = "0.4"
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=rf"torch 0.4, now {re.escape(outcome.facts['torch'])}.*--fresh"):
        run_suite(["zero_filled"], quick=True, stored=path)
    assert json.loads(path.read_text()) == content
    for text in ("dear diary", "[]", '{"facts": {}, "cells": [{"part": 1}]}', '{"facts": 3, "cells": []}'):
        path.write_text(text)
        with pytest.raises(ResourceError, match="no result of this suite"):
            run_suite(["zero_filled"], quick=True, stored=path)
        assert path.read_text() == text


# --- tables -----------------------------------------------------------------------------------------------------------


def cell(scan, seconds=1.0, method="cg_sense", part="cine", condition="uniform_8", **more):
    scores = {name: more.pop(name) for name in list(more) if name in SCORES}
    return Cell(part, scan, condition, method, seconds=seconds, scores=scores, **more)


def test_medians_and_worst_values_by_hand():
    cells = [
        cell("a", 3.0, nrmse=0.1, psnr=30.0, net_acceleration=4.0),
        cell("b", 1.0, nrmse=0.4, psnr=20.0, net_acceleration=2.0, outside=("far", "away")),
        cell("c", 2.0, nrmse=0.2, psnr=34.0, net_acceleration=2.0, outside=("far",)),
        cell("d", failure="it broke", net_acceleration=2.0),
        cell("a", 9.0, condition="random_8", nrmse=0.5, psnr=10.0),
        cell("b", 4.0, condition="random_8", nrmse=0.3, psnr=13.0),
    ]
    first, second = summarise(cells)
    assert (first.part, first.condition, first.method) == ("cine", "uniform_8", "cg_sense")
    assert first.median == {"nrmse": 0.2, "psnr": 30.0}
    assert first.worst == {"nrmse": 0.4, "psnr": 20.0}
    assert (first.scans, first.outside, first.seconds, first.net_acceleration) == (3, 2, 2.0, 2.0)
    assert first.failure == "it broke"
    assert second.median == {"nrmse": pytest.approx(0.4), "psnr": 11.5}
    assert second.worst == {"nrmse": 0.5, "psnr": 10.0}
    assert second.seconds == 6.5


def outcome_of(*cells, shown=(), missing=()):
    methods = dict.fromkeys(dict.fromkeys(one.method for one in cells))
    return Outcome(dict(FACTS), methods, list(missing), list(cells), list(shown))


def test_the_table_shows_medians_side_by_side():
    cells = [
        cell("a", condition=condition, method=method, psnr=30.04 + i, dynamic_psnr=20.0, ssim=0.9, dynamic_ssim=0.8)
        for i, (method, condition) in enumerate(
            (method, condition) for method in ("cg_sense", "grappa") for condition in ("uniform_8", "random_8")
        )
    ]
    text = table(outcome_of(*cells, missing=["cinenet", "dstdm"]))
    lines = text.splitlines()
    assert lines[0] == PARTS["cine"]
    assert lines[1] == "  a"
    assert re.split(r"\s{2,}", lines[3]) == ["dynamic PSNR / PSNR, dB", "uniform 8", "random 8", "s per series"]
    assert lines[4].split() == ["net", "acceleration", "1.0", "1.0"]
    assert lines[5].split() == ["cg_sense", "20.0", "/", "30.0", "20.0", "/", "31.0", "1.00"]
    assert lines[6].split() == ["grappa", "20.0", "/", "32.0", "20.0", "/", "33.0", "1.00"]
    assert lines[9].split() == ["cg_sense", "0.800", "/", "0.900", "0.800", "/", "0.900"]
    assert len({len(line) for line in lines[3:7]}) == 1
    assert "Simulated scans only: --data DIR" in text
    assert text.endswith("Left out, because they have no weights: cinenet, dstdm")


def test_differences_are_of_scans_that_both_have():
    cells = [
        cell("a", method="dstdm", psnr=30.0, nrmse=0.2, dynamic_psnr=20.0),
        cell("b", method="dstdm", psnr=40.0, nrmse=0.1),
        cell("c", method="dstdm", psnr=1.0, nrmse=0.9),
        cell("d", method="dstdm", failure="no"),
        cell("a", method="dstdm", psnr=99.0, nrmse=0.0, condition="random_8"),
        cell("a", method="dstdm", psnr=20.0, nrmse=0.4, part="view"),
        cell("a", method="dstdm/paper", psnr=31.0, nrmse=0.1, dynamic_psnr=20.0),
        cell("b", method="dstdm/paper", psnr=39.5, nrmse=0.15),
        cell("a", method="dstdm/paper", psnr=23.0, nrmse=0.3, part="view"),
        cell("d", method="dstdm/paper", psnr=50.0, nrmse=0.0),
        cell("e", method="dstdm/paper", psnr=50.0, nrmse=0.0),
        cell("a", method="atlf_net/ct", psnr=50.0, nrmse=0.0),
        cell("c", method="dstdm/paper", failure="no"),
    ]
    (found,) = differences(cells)
    assert (found.name, found.scans) == ("dstdm/paper", 3)
    assert found.median == {"psnr": pytest.approx(1.0), "nrmse": pytest.approx(-0.1)}
    assert found.worst == {"psnr": pytest.approx(-0.5), "nrmse": pytest.approx(0.05)}
    assert differences(cells[:6]) == []


def test_gains_are_of_networks_over_the_yardstick_part_by_part():
    ours = [("cine", 31.0, 25.5), ("cine", 30.5, 24.5), ("cine", 30.1, 25.0), ("view", 29.0, 26.0)]
    cells = [
        *(
            cell(str(scan), method="crunet_mr", weights="w", part=part, psnr=whole, dynamic_psnr=moving)
            for scan, (part, whole, moving) in enumerate(ours)
        ),
        *(cell(str(scan), method="kt_sense", part=ours[scan][0], psnr=30.0, dynamic_psnr=25.0) for scan in range(4)),
        *(cell(str(scan), method="cg_sense", part=ours[scan][0], psnr=10.0, dynamic_psnr=10.0) for scan in range(4)),
        cell("0", method="crunet_mr", weights="w", part="realtime", psnr=20.0),
        cell("0", method="dstdm/paper", weights="w", psnr=20.0),
    ]
    cine, view = gains(cells)
    assert (cine.name, cine.scans, view.name, view.scans) == ("crunet_mr, cine", 3, "crunet_mr, view", 1)
    assert cine.median == {"psnr": pytest.approx(0.5), "dynamic_psnr": pytest.approx(0.0)}
    assert cine.worst == {"psnr": pytest.approx(0.1), "dynamic_psnr": pytest.approx(-0.5)}
    lines = table(outcome_of(*cells)).splitlines()
    start = lines.index(GAINED)
    assert lines[start + 3].split() == ["crunet_mr,", "cine", "3", "+0.00", "(-0.50)", "+0.50", "(+0.10)", "–", "(–)"]


def test_the_table_says_of_how_many_scans_a_variant_is():
    scores = {"psnr": 30.0, "dynamic_psnr": 25.0, "ssim": 0.9, "dynamic_ssim": 0.8}
    better = {"psnr": 31.5, "dynamic_psnr": 24.75, "ssim": 0.9125, "dynamic_ssim": 0.9}
    cells = [
        *(cell(scan, method="dstdm", condition=name, **scores) for scan in "ab" for name in ("uniform_8", "random_8")),
        cell("b", method="dstdm/paper", **better),
        *(cell(scan, method="dstdm", part="semi_real", condition=scan, **scores) for scan in "cd"),
    ]
    lines = table(outcome_of(*cells)).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("dstdm")]
    label = "dstdm/paper (1 of 2 scans)"
    assert rows[:2] == [["dstdm", "25.0 / 30.0", "25.0 / 30.0", "1.00"], [label, "24.8 / 31.5", "1.00"]]
    assert rows[2:4] == [["dstdm", "0.800 / 0.900", "0.800 / 0.900"], [label, "0.900 / 0.912"]]
    assert rows[4:6] == [["dstdm", "25.0 / 30.0", "25.0 / 30.0", "1.00"], ["dstdm", "0.800 / 0.900", "0.800 / 0.900"]]
    assert rows[6:] == [["dstdm/paper", "1", "-0.25 (-0.25)", "+1.50 (+1.50)", "+0.0125 (+0.0125)"]]
    assert f"{COMPARED}, every 8th line + 24 ACS" in lines
    assert COMPARED not in table(outcome_of(*(one for one in cells if one.method == "dstdm")))


# --- page and figure --------------------------------------------------------------------------------------------------


def test_page_has_a_table_and_loops_for_every_part(data, tmp_path):
    outcome = run_suite(["zero_filled", "cg_sense", "grappa"], data=data, quick=True, images=True)
    assert [(one.part, list(one.images)) for one in outcome.shown] == [
        *((part, ["zero_filled", "cg_sense"]) for part in HERE),  # grappa does not take random lines
        ("semi_real", ["zero_filled", "cg_sense", "grappa"]),
    ]
    write_suite_page(tmp_path / "page.html", outcome)
    page = Checker((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.addresses) == len(page.loops) == 3
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for text in (
        *(PARTS[part] for part in HERE),
        "Patient, variable density, 1 of 8",
        "net acceleration 8.0",
        "HaarPSI",
    ):
        assert text in page.text
    assert f"seed {outcome.facts['seed']}" in page.text
    best = [attributes for _, attributes in page.tags if attributes.get("class") == "best"]
    assert len(best) == 7 * len(SCORE_FORMS)

    write_picture(tmp_path / "still.png", outcome)
    with Picture.open(tmp_path / "still.png") as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    assert 2.5 < width / (240 * outcome.shown[0].aspect) < 3.5  # truth and two methods
    assert height > 2.5 * 240


def test_medians_of_fewer_scans_are_not_the_best(tmp_path):
    cells = [
        *(cell(scan, method="dstdm", psnr=30.0) for scan in "ab"),
        *(cell(scan, method="grappa", psnr=20.0) for scan in "ab"),
        cell("b", method="dstdm/paper", psnr=40.0),
    ]
    write_suite_page(tmp_path / "page.html", outcome_of(*cells))
    assert re.findall(r'class="best">([\d.]+)', (tmp_path / "page.html").read_text(encoding="utf-8")) == ["30.0"]


def test_images_are_made_again_for_a_page_after_all_is_done(tmp_path, counted):
    path = tmp_path / "suite.json"
    run_suite(["zero_filled"], quick=True, stored=path)
    counted.clear()
    outcome = run_suite(["zero_filled"], quick=True, stored=path, images=True)
    assert len(counted) == len(HERE) == len(outcome.shown)


def test_the_figure_has_the_best_of_each_kind():
    ranked = {
        name: float(i) for i, name in enumerate(reversed([name for name in METHODS if not METHODS[name].chooses]))
    }
    assert _columns(ranked) == [
        *("zero_filled", "kt_sense", "cg_sense"),  # the last of these is the best of the others in this ranking
        *("crunet_mr", "crnn_mri", "unet3d_mr", "cinenet"),
    ]
    assert _columns({"low_rank_sparse": 2.0, "cinenet": 1.0}) == ["low_rank_sparse", "cinenet"]
    assert _columns({"dstdm/paper": 2.0, "dstdm": 1.0, "grappa": 0.0}) == ["grappa", "dstdm", "dstdm/paper"]
    with pytest.raises(SettingsError, match="no method made an image"):
        write_picture("never.png", outcome_of(cell("a", failure="no")))


def test_the_still_shows_the_error_of_the_moment():
    truth = beating(8, (48, 64))
    wrong = truth.copy()
    wrong[:, 20:28, 36:42] += 0.1 * truth.max()
    pixels = np.asarray(still(truth, [("same", truth, ""), ("wrong", wrong, "")], "", 4 / 3))
    width = 320 + 2
    errors = pixels[28 + 242 : 28 + 242 + 240]
    assert errors[:, width : width + 320].max() == 0
    assert errors[:, 2 * width : 2 * width + 320].max() > 100
    np.testing.assert_array_equal(pixels[28:268, width : width + 320].mean() > 20, True)


def test_a_still_of_a_series_that_does_not_move():
    truth = np.repeat(beating(1), 4, axis=0)
    assert still(truth, [("same", truth, "")], "", 1.0).size[0] == 2 * 242 - 2


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    made = [tmp_path / f"suite.{kind}" for kind in ("json", "html", "png")]
    options = [f"--{name}={path}" for name, path in zip(("json", "report", "picture"), made, strict=True)]
    assert main(["evaluate", "--suite", "standard", "--quick", "--methods", "zero_filled,cg_sense", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(path.is_file() and str(path) in out for path in made)
    assert all(PARTS[part] in out for part in HERE)
    assert out.count("cg_sense") == 2 * len(HERE)
    assert "Simulated scans only" in out


def test_the_help_names_the_variants(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert set(VARIANTS) <= set(re.findall(r"\w+/\w+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--suite", "standard", "images.h5"], "does not go with image files"),
        (["--suite", "standard", "--truth", "t.npz", "--slices"], "does not go with --truth, --slices"),
        (["--suite", "standard", "--csv", "s.csv", "--dists-weights", "w"], "does not go with --csv, --dists-weights"),
        (
            ["images.h5", "--truth", "t.npz", "--quick", "--json", "s.json"],
            "--quick, --json belongs to --suite standard",
        ),
        (["images.h5"], "expected image files and --truth FILE, or --suite standard"),
        ([], "expected image files and --truth FILE, or --suite standard"),
        (["--suite", "standard", "--fresh"], "--fresh starts the file of --json again"),
        (["--suite", "standard", "--methods", "magic"], "no method 'magic'"),
        (["--suite", "best"], "invalid choice: 'best'"),
        (["--suite", "standard", "--data", "/no/such/folder"], "there is no folder '/no/such/folder'"),
    ],
)
def test_a_wrong_call(arguments, text, capsys):
    try:
        status = main(["evaluate", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--report", "--picture"])
def test_a_file_that_cannot_be_written_is_known_before_anything_is_computed(option, tmp_path, capsys, counted):
    assert main(["evaluate", "--suite", "standard", option, str(tmp_path / "nowhere" / "file")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert counted == []


def test_the_real_scans_end_to_end(capsys, monkeypatch, tmp_path):
    """Small ones, but drawn and measured as always, and with a patient."""
    monkeypatch.setattr("gadgets.evaluation.suite.held_out_scans", held_out.held_out_scans)
    for name, value in {"_MATRIX": (40, 48), "_N_FRAMES": 4, "_N_COILS": 3}.items():
        monkeypatch.setattr(held_out, name, value)
    write_patient(tmp_path)
    options = ["--suite", "standard", "--quick", "--methods", "zero_filled", "--json", str(tmp_path / "suite.json")]
    assert main(["evaluate", *options, "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(title in out for title in PARTS.values())
    cells = json.loads((tmp_path / "suite.json").read_text())["cells"]
    assert [cell["part"] for cell in cells] == [part for part in PARTS for _ in range(3)]
    assert all(cell["source"] and cell["scores"]["psnr"] > 5 for cell in cells)
    (tmp_path / "scd_cine" / "SCD0000301.npz").unlink()
    assert main(["evaluate", *options, "--data", str(tmp_path)]) == 1
    assert "SCD0000301" in capsys.readouterr().err
