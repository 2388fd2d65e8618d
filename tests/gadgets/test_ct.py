"""The CT of a simulated scan: where it lands in the slices, what the images say of it, and what a peer may not read."""

import dataclasses
import os
import re

import ismrmrd
import nibabel
import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.ct import confine, load_ct, slice_geometry
from gadgets.files.images import read_images
from gadgets.files.raw import write_scan
from gadgets.problems import Problems
from gadgets.replay import replay
from gadgets.settings.settings import FIELDS, Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image
from recon_core.ct.volume import file_digest
from recon_core.engine import Engine
from recon_core.errors import CinestreamError, DataError, SettingsError
from tests.helpers.networks import write_tiny_weights

PLAN = ScanPlan(
    matrix_x=48,
    matrix_y=40,
    field_of_view_x=360.0,
    field_of_view_y=300.0,
    frames=2,
    slices=2,
    coils=3,
    acceleration=2,
    acs_lines=10,
    phase_oversampling=0.2,
    rotation_x=25.0,
    rotation_y=-15.0,
    offset_left=12.0,
    offset_head=-20.0,
    seed=3,
)
ATLF = Settings.of(method="atlf_net", fallback="none", outside_range="note", device="cpu")
RAMP = np.array([0.7, -0.5, 0.4])  # HU per mm along left, posterior and superior
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Watched:
    """The engine, and the slices that it was given."""

    def __init__(self, engine):
        self.engine, self.slices = engine, []

    def __call__(self):
        return self

    def reconstruct(self, cine, settings):
        self.slices.append(cine)
        return self.engine.reconstruct(cine, settings)


@pytest.fixture(scope="module")
def scan():
    return simulate(PLAN)


@pytest.fixture(scope="module")
def raw(scan, tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_scan(path, scan.header, list(scan.items()))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_weights(folder, "atlf_net")
    return folder


@pytest.fixture
def _weights(weights, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(weights))


@pytest.fixture(scope="module")
def engine():
    return Engine()


def write_nifti(path, hu, affine_lps):
    image = nibabel.Nifti1Image(hu.astype(np.float32), TO_RAS @ affine_lps)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def hu_at(points):
    return 300 + (points - PLAN.positions.mean(0)) @ RAMP


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A CT all around the scan, whose axes are those of no slice and whose values tell where they are."""
    spacing, n = 20.0, 36
    affine = np.eye(4)
    affine[:3, :3] = spacing * np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]]).T
    affine[:3, 3] = PLAN.positions.mean(0) - affine[:3, :3] @ np.full(3, n / 2)
    index = np.stack(np.meshgrid(*3 * [np.arange(n)], indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return write_nifti(tmp_path_factory.mktemp("ct") / "ramp.nii.gz", hu_at(points), affine)


def write_anatomy(path, scan, *, moved=0):
    """A CT that shows what the scan shows, on the grid of its images, so many columns further on."""
    stack = np.abs(scan.truth.image).mean(1)
    stack = np.concatenate([stack[:1], stack, stack[-1:]])  # planes beyond the first and the last slice
    stack = 1000 * stack / stack.max() - 200
    hu = np.roll(stack, moved, axis=2).transpose(2, 1, 0)
    step = PLAN.slice_thickness + PLAN.slice_gap
    spacing = PLAN.field_of_view_x / PLAN.matrix_x, PLAN.field_of_view_y / PLAN.matrix_y, step
    affine = np.eye(4)
    affine[:3, :3] = (PLAN.directions * np.array(spacing)[:, None]).T
    affine[:3, 3] = PLAN.positions[0] - affine[:3, :3] @ (PLAN.matrix_x // 2, PLAN.matrix_y // 2, 1)
    return write_nifti(path, hu, affine)


def run(raw, folder, engine, **settings):
    """Replay; gives the images of all series, the summary, and the slices that the engine saw."""
    watched = Watched(engine)
    _, summary = replay(raw, folder / "images.h5", apply(ATLF, settings), watched)
    return read_images(folder / "images.h5"), summary, watched.slices


def metas(images):
    return [ismrmrd.Meta.deserialize(image.attributes) for each in images.values() for image in each]


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_weights")
def test_pixels_of_the_ct_lie_where_those_of_the_slices_do(raw, ramp, engine, tmp_path):
    images, summary, slices = run(raw, tmp_path, engine, ct_path=str(ramp))
    assert summary.images == 4
    assert summary.problems.damage == []
    read, phase, _ = PLAN.directions
    dx, dy = PLAN.field_of_view_x / PLAN.matrix_x, PLAN.field_of_view_y / PLAN.matrix_y
    for position, cine in zip(PLAN.positions, slices, strict=True):
        n_y, n_x = cine.kspace.shape[2:]
        assert cine.ct.image.shape == cine.ct.cover.shape == (n_y, n_x) == (48, 48)  # oversampled lines are still there
        assert cine.ct.cover.all()
        for row, column in ((24, 24), (0, 0), (0, 47), (47, 0), (13, 38)):
            point = position + (column - n_x // 2) * dx * read + (row - n_y // 2) * dy * phase
            assert 0 < cine.ct.image[row, column] < 1
            assert cine.ct.image[row, column] == pytest.approx((hu_at(point) + 200) / 1000, abs=1e-5)
    assert {meta["ct_hash"] for meta in metas(images)} == {file_digest(ramp)}


@pytest.mark.usefixtures("_weights")
def test_window_and_transform_are_those_of_the_settings(raw, ramp, engine, tmp_path):
    shift = np.eye(4)
    shift[:3, 3] = 5, -7, 11
    np.savetxt(tmp_path / "shift.txt", TO_RAS @ shift @ TO_RAS)
    settings = {"ct_transform": str(tmp_path / "shift.txt"), "ct_transform_space": "ras"}
    settings |= {"ct_window_low": -1000.0, "ct_window_high": 1000.0, "ct_slab_samples": 1}
    images, _, slices = run(raw, tmp_path, engine, ct_path=str(ramp), **settings)
    expected = (hu_at(PLAN.positions[0] + shift[:3, 3]) + 1000) / 2000
    assert slices[0].ct.image[24, 24] == pytest.approx(expected, abs=1e-5)
    assert {meta["ct_transform_hash"] for meta in metas(images)} == {file_digest(tmp_path / "shift.txt")}


def test_the_grid_of_a_slice(scan, tmp_path):
    seen = []
    header = parse_header(scan.header)
    engine = Watched(Engine())
    chain = Chain(
        header, Settings.of(method="zero_filled", device="cpu"), engine, watch=lambda *both: seen.append(both)
    )
    list(chain(scan.items()))
    geometry = slice_geometry(seen[1][0], header.encodings[0])
    assert geometry.matrix == (48, 48)
    assert geometry.centre == (24, 24)
    assert geometry.field_of_view == pytest.approx((360.0, 360.0))
    assert geometry.thickness == PLAN.slice_thickness
    np.testing.assert_allclose(geometry.position, PLAN.positions[1], atol=1e-4)
    np.testing.assert_allclose([geometry.read_dir, geometry.phase_dir, geometry.slice_dir], PLAN.directions, atol=1e-6)
    geometry.check()
    assert "ct_status" not in "".join(seen[0][0].notes)
    assert engine.slices[0].ct is None


# --- what the images say ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_weights")
def test_a_ct_that_fits_changes_the_images_and_is_named_in_all_of_them(scan, raw, engine, tmp_path):
    path = write_anatomy(tmp_path / "ct.nii", scan)
    images, summary, _ = run(raw, tmp_path, engine, ct_path=str(path), emit_fused=True, ct_min_coverage=0.5)
    assert [problem.text for problem in summary.problems] == []
    assert {series: len(each) for series, each in images.items()} == {1: 4, 23: 2}
    for meta in metas(images):
        assert meta["cinestream_method"] == "atlf_net"
        assert meta["ct_status"] == "ok"
        assert float(meta["ct_coverage"]) == pytest.approx(40 / 48, abs=0.05)
        assert meta["ct_hash"] == file_digest(path)
        assert "ct_transform_hash" not in meta  # there is none
        assert "CT ok" in meta["ImageComments"]
    without, _, _ = run(raw, _folder(tmp_path, "without"), engine, ct_policy="fallback")
    assert not np.allclose(images[1][0].data, without[1][0].data, rtol=1e-3)


def _folder(folder, name):
    (folder / name).mkdir()
    return folder / name


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize(("policy", "status"), [("error", "ct_suspect"), ("fallback", "no_ct:alignment")])
def test_a_ct_that_is_out_of_place_is_suspect(policy, status, scan, raw, engine, tmp_path):
    path = write_anatomy(tmp_path / "ct.nii", scan, moved=8)
    images, summary, slices = run(raw, tmp_path, engine, ct_path=str(path), ct_min_coverage=0.5, ct_policy=policy)
    assert {meta["ct_status"] for meta in metas(images)} == {status}
    assert all((cine.ct is None) == (policy == "fallback") for cine in slices)
    (problem,) = summary.problems
    assert "may not lie where slice 0 is: its edges fit better 0 rows and -8 columns away" in problem.text
    assert summary.problems.damage == []


def test_other_methods_know_of_no_ct(raw, engine, tmp_path):
    images, _, slices = run(raw, tmp_path, engine, method="zero_filled", ct_path="/no/such/ct.nii")
    assert all(cine.ct is None for cine in slices)
    assert all("ct_status" not in meta for meta in metas(images))


def test_without_weights_the_fallback_needs_no_ct(raw, tmp_path):
    images, _, _ = run(raw, tmp_path, Engine(), fallback="zero_filled", ct_path="/no/such/ct.nii")
    assert {meta["cinestream_method"] for meta in metas(images)} == {"zero_filled"}
    assert all("ct_status" not in meta for meta in metas(images))


@pytest.mark.usefixtures("_weights")
def test_the_images_of_the_fallback_do_not_claim_a_ct(raw, ramp, engine, tmp_path):
    class GivingUp:
        def reconstruct(self, cine, settings):
            return engine.reconstruct(cine, dataclasses.replace(settings, method="zero_filled"))

    images, _, slices = run(raw, tmp_path, GivingUp(), ct_path=str(ramp))
    assert slices[0].ct is not None
    assert all("ct_status" not in meta and "CT" not in meta["ImageComments"] for meta in metas(images))


# --- no CT ------------------------------------------------------------------------------------------------------------

BAD = {
    "empty": ("", "empty", "ct_path: is empty"),
    "missing": ("absent.nii", "missing", "ct_path: .*absent.nii: there is no such file"),
    "unreadable": ("broken.nii", "unreadable", "ct_path: .*broken.nii"),
}


def bad(name, folder):
    file, status, message = BAD[name]
    (folder / "broken.nii").write_bytes(b"no CT at all" * 100)
    return str(folder / file) if file else "", f"no_ct:{status}", message


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("name", BAD)
def test_no_ct_is_an_error_before_the_data(name, scan, tmp_path):
    path, _, message = bad(name, tmp_path)
    with pytest.raises(CinestreamError, match=message):
        Chain(parse_header(scan.header), apply(ATLF, {"ct_path": path}), Engine)


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("name", BAD)
def test_with_the_policy_fallback_no_ct_is_reported_and_done_without(name, raw, engine, tmp_path, caplog):
    path, status, _ = bad(name, tmp_path)
    images, summary, slices = run(raw, tmp_path, engine, ct_path=path, ct_policy="fallback", emit_fused=True)
    assert {series: len(each) for series, each in images.items()} == {1: 4}  # nothing was fused
    assert all(cine.ct is None for cine in slices)
    for meta in metas(images):
        assert meta["ct_status"] == status
        assert float(meta["ct_coverage"]) == 0
        assert "ct_hash" not in meta
        assert f"CT {status}" in meta["ImageComments"]
    assert caplog.text.count("reconstructing without CT: ct_path: ") == 1
    # a CT that nobody asked for is no problem of the scan
    expected = [] if name == "empty" else [(False, 1)]
    assert [(problem.damage, problem.count) for problem in summary.problems] == expected


@pytest.mark.usefixtures("_weights")
def test_a_transform_that_is_missing_is_named(scan, ramp, tmp_path):
    settings = apply(ATLF, {"ct_path": str(ramp), "ct_transform": str(tmp_path / "absent.txt")})
    with pytest.raises(SettingsError, match=r"ct_transform: .*absent\.txt"):
        load_ct(parse_header(scan.header), settings, Problems())


def test_a_window_upside_down_is_refused():
    with pytest.raises(SettingsError, match="ct_window_low must be below ct_window_high, got 800 and -200"):
        apply(ATLF, {"ct_window_low": 800.0, "ct_window_high": -200.0})


def elsewhere(folder):
    """A CT that covers the second slice and not the first."""
    normal = PLAN.directions[2]
    affine = np.eye(4)
    affine[:3, :3] = PLAN.directions.T * (100.0, 100.0, 4.0)
    affine[:3, 3] = PLAN.positions[1] - affine[:3, :3] @ (4.0, 4.0, 0.0) - 4.5 * normal
    return write_nifti(folder / "part.nii", np.zeros((9, 9, 20)), affine)


@pytest.mark.usefixtures("_weights")
def test_a_slice_outside_of_the_ct_fails_and_the_others_go_on(raw, engine, tmp_path):
    images, summary, _ = run(raw, tmp_path, engine, ct_path=str(elsewhere(tmp_path)))
    assert [image.header["slice"] for image in images[1]] == [1, 1]
    (problem,) = summary.problems.damage
    assert "slice 0 could not be reconstructed" in problem.text
    assert "with 0% of its pixels, and ct_min_coverage is 90%" in problem.text
    assert {meta["ct_status"] for meta in metas(images)} == {"ok"}


@pytest.mark.usefixtures("_weights")
def test_with_the_policy_fallback_a_slice_outside_of_the_ct_does_without(raw, engine, tmp_path):
    path = str(elsewhere(tmp_path))
    images, summary, slices = run(raw, tmp_path, engine, ct_path=path, ct_policy="fallback")
    status = {image.header["slice"]: meta["ct_status"] for image, meta in zip(images[1], metas(images), strict=True)}
    assert status == {0: "no_ct:coverage=0.00", 1: "ok"}
    assert [cine.ct is None for cine in slices] == [True, False]
    assert summary.problems.damage == []
    assert any("slice 0" in problem.text and "ct_min_coverage" in problem.text for problem in summary.problems)


@pytest.mark.usefixtures("_weights")
def test_a_scan_outside_of_the_ct_is_an_error(scan, tmp_path):
    path = write_nifti(
        tmp_path / "far.nii", np.zeros((4, 4, 4)), np.diag([10.0, 10.0, 10.0, 1.0]) + np.eye(4, k=3) * 1e4
    )
    chain = Chain(parse_header(scan.header), apply(ATLF, {"ct_path": str(path)}), Watched(Engine()))
    with pytest.raises(DataError, match="no slice could be reconstructed"):
        assert not [item for item in chain(scan.items()) if isinstance(item, Image)]


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("name", BAD)
def test_without_a_ct_the_fallback_makes_the_images_and_says_so(name, raw, engine, tmp_path):
    """As ``atlf_net.xml`` is, with the fallback and the policy that it has by default."""
    path, _, text = bad(name, tmp_path)
    images, summary, _ = run(raw, tmp_path, engine, ct_path=path, fallback="zero_filled")
    plain, _, _ = run(raw, _folder(tmp_path, "plain"), engine, method="zero_filled")
    np.testing.assert_array_equal([image.data for image in images[1]], [image.data for image in plain[1]])
    (problem,) = summary.problems
    assert not problem.damage
    assert re.match(f"zero_filled is used instead of atlf_net: {text}", problem.text)
    for meta in metas(images):
        assert meta["cinestream_method"] == "zero_filled"
        assert re.search(f"zero_filled instead of atlf_net: {text}", meta["ImageComments"])
        assert "ct_status" not in meta


@pytest.mark.usefixtures("_weights")
def test_only_a_slice_outside_of_the_ct_goes_to_the_fallback(raw, engine, tmp_path):
    path = str(elsewhere(tmp_path))
    images, summary, slices = run(raw, tmp_path, engine, ct_path=path, fallback="zero_filled")
    made = {image.header["slice"]: meta for image, meta in zip(images[1], metas(images), strict=True)}
    assert {number: meta["cinestream_method"] for number, meta in made.items()} == {0: "zero_filled", 1: "atlf_net"}
    assert "zero_filled instead of atlf_net: slice 0 at" in made[0]["ImageComments"]
    assert made[1]["ct_status"] == "ok"
    assert [cine.ct is None for cine in slices] == [True, False]
    (problem,) = summary.problems
    assert "zero_filled is used for it: slice 0 at" in problem.text
    assert not problem.damage


# --- weights ----------------------------------------------------------------------------------------------------------


def known(monkeypatch, **config):
    entry = type("Entry", (), {"config": config})
    monkeypatch.setattr("gadgets.ct.find_weights", lambda *_: entry)


def test_a_fallback_that_the_weights_cannot_do_is_refused(scan, ramp, monkeypatch):
    known(monkeypatch)
    settings = apply(ATLF, {"ct_path": str(ramp), "ct_policy": "fallback"})
    with pytest.raises(SettingsError, match="trained with CT only"):
        load_ct(parse_header(scan.header), settings, Problems())


def test_weights_of_a_network_without_ct_need_none(scan, monkeypatch):
    known(monkeypatch, condition="none")
    assert load_ct(parse_header(scan.header), ATLF, Problems()) is None


# --- what a peer may read ---------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name in ("first", "second", "private"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "a.nii").touch()
    (tmp_path / "second" / "b.h5").touch()
    (tmp_path / "second" / "series").mkdir()
    (tmp_path / "private" / "secret.nii").touch()
    (tmp_path / "first" / "link.nii").symlink_to(tmp_path / "private" / "secret.nii")
    (tmp_path / "first" / "circle").symlink_to(tmp_path / "first" / "circle")
    return tmp_path / "first", tmp_path / "second"


@pytest.mark.parametrize("name", ["ct_path", "ct_transform"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a.nii", "first/a.nii"),
        ("b.h5/dataset/image_0", "second/b.h5/dataset/image_0"),
        ("series", "second/series"),
        ("series/../b.h5", "second/b.h5"),
        (".", "first"),
    ],
)
def test_a_peer_may_name_files_in_the_folders(name, value, found, folders, tmp_path):
    settings = confine(Settings.of(**{name: value}), Settings(), folders)
    assert FIELDS[name].of(settings) == str(tmp_path / found)


@pytest.mark.parametrize("name", ["ct_path", "ct_transform"])
@pytest.mark.parametrize(
    "value",
    [
        "absent.nii",
        "../private/secret.nii",
        "series/../../private/secret.nii",
        "{folder}/private/secret.nii",
        "/etc/passwd",
        "link.nii",
        "circle",
        "a\0b",
        "x" * 5000,
        "..",
    ],
)
def test_a_peer_may_name_no_others(name, value, folders, tmp_path):
    settings = Settings.of(**{name: value.format(folder=tmp_path)})
    with pytest.raises(SettingsError, match=f"^{name}: .* is not in the folders .* --ct-folder"):
        confine(settings, Settings(), folders)
    with pytest.raises(SettingsError, match=f"^{name}: .* takes no files for CT from its peers.* --ct-folder"):
        confine(settings, Settings(), ())


def test_files_of_the_operator_lie_anywhere(folders, tmp_path):
    trusted = Settings.of(ct_path=os.fspath(tmp_path / "private" / "secret.nii"))
    wanted = apply(trusted, {"series": 3})
    assert confine(wanted, trusted, ()) == wanted
    with pytest.raises(SettingsError):
        confine(apply(trusted, {"ct_transform": "x.txt"}), trusted, folders)
