"""The scans of the evaluation: the same ones every time, measured as a stream hands them on."""

import itertools

import numpy as np
import pytest
import torch

from gadgets.evaluation import held_out
from gadgets.evaluation.held_out import CONDITIONS, PARTS, Condition, held_out_scans
from recon_core.ct.alignment import check_alignment
from recon_core.engine import Engine
from recon_core.errors import ResourceError
from recon_core.metrics.measures import best_scale, dynamic_region, nrmse
from recon_core.options import ReconOptions
from recon_core.physics.fourier import ifft
from recon_core.simulate.sampling import sampling_mask
from tests.helpers.paths import SHARED, needs

DATA = SHARED / "data"
MATRIX, FRAMES, COILS = (40, 48), 6, 4


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(held_out, "_MATRIX", MATRIX)
    monkeypatch.setattr(held_out, "_N_FRAMES", FRAMES)
    monkeypatch.setattr(held_out, "_N_COILS", COILS)


@pytest.fixture
def data(tmp_path):
    """A folder with a held-out patient of ten slices: a disc that beats."""
    write_patient(tmp_path)
    return tmp_path


def write_patient(folder, n_slices=10, size=80):
    y, x = np.indices((size, size)) - size / 2
    radius = size * (0.2 + 0.05 * np.cos(2 * np.pi * np.arange(5) / 5))[:, None, None]
    cine = 300 / (1 + np.exp((np.hypot(y, 1.2 * x) - radius) / 2)) + 50 * np.exp(-(y**2 + x**2) / (0.2 * size**2))
    slices = (cine[None] * np.linspace(1, 2, n_slices)[:, None, None, None]).astype(np.uint16)
    (folder / "scd_cine").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "scd_cine" / "SCD0000301.npz", img=slices, pixel_spacing_mm=np.float32([1.5, 1.25]))


def scan(part, name, data=None):
    (found,) = [one for one in held_out_scans(data) if (one.part, one.name) == (part, name)]
    return found


def test_every_part_has_scans_and_the_patient_joins(data):
    simulated = held_out_scans()
    assert list(dict.fromkeys(one.part for one in simulated)) == list(PARTS)
    assert not any(one.source for one in simulated)
    assert {one.conditions for one in simulated} == {tuple(CONDITIONS)}
    everything = held_out_scans(data)
    assert list(dict.fromkeys(one.part for one in everything)) == list(PARTS)
    names = [(one.part, one.name) for one in everything]
    assert len(set(names)) == len(names)
    assert {(one.part, one.name) for one in simulated} < set(names)
    joined = [one for one in everything if one.source]
    assert {one.part for one in joined} == set(PARTS)
    assert all("patient" in one.name for one in joined)


def test_a_scan_is_the_same_every_time_and_whatever_else_there_is(data):
    for one, again in list(zip(held_out_scans(data), held_out_scans(data), strict=True))[::3]:
        first, second = one.load(), again.load()
        np.testing.assert_array_equal(first.truth, second.truth)
        (cine,), (same) = first.measured("random_8"), second.measured("random_8")
        np.testing.assert_array_equal(cine.kspace, same[0].kspace)
        np.testing.assert_array_equal(cine.mask, same[0].mask)
        assert np.isfinite(first.truth).all()
    np.testing.assert_array_equal(scan("view", "series 1").load().truth, scan("view", "series 1", data).load().truth)


def test_scans_differ():
    truths = [one.load().truth for one in held_out_scans()]
    for i, truth in enumerate(truths):
        assert truth.shape == (1, FRAMES, *MATRIX)
        assert all(nrmse(truth[0], other[0]) > 0.1 for other in truths[:i])


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_measured_as_it_says(name):
    condition = CONDITIONS[name]
    (cine,) = scan("cine", "subject 1").load().measured(name)
    sampling = {"acceleration": condition.acceleration, "acs_lines": condition.acs_lines}
    if condition.sampling == "variable_density":
        assert (
            cine.mask.sum(1).tolist() == [max(round(MATRIX[0] / condition.acceleration), condition.acs_lines)] * FRAMES
        )
    else:
        np.testing.assert_array_equal(cine.mask, sampling_mask(condition.sampling, FRAMES, MATRIX[0], **sampling))
    measured = (cine.kspace != 0).any(axis=(1, 3))
    np.testing.assert_array_equal(measured, cine.mask)
    assert cine.kspace.shape == (FRAMES, COILS, *MATRIX)


# FOV along x in mm
CTS = [("cine", "subject 1", 336.0), ("view", "series 1", 336.0), ("cine", "patient slice 2", 80 * 1.25)]


@pytest.mark.parametrize(("part", "name", "size"), CTS)
def test_a_ct_lies_where_the_scan_does(part, name, size, data):
    loaded = scan(part, name, data).load()
    ((ct, cover),) = loaded.placed(0.0)
    assert (ct.shape, ct.dtype) == (MATRIX, np.float32)
    assert cover.all()
    assert 0 <= ct.min() < ct.max() <= 1
    magnitude = np.abs(loaded.truth[0, 0])
    similarity = {
        shift: check_alignment(np.roll(ct, shift, (0, 1)), magnitude, cover).similarity
        for shift in itertools.product(range(-2, 3), repeat=2)
    }
    assert max(similarity, key=similarity.get) == (0, 0)
    assert np.abs(magnitude / magnitude.max() - ct).max() > 0.2  # other grey values


@pytest.mark.parametrize("off", [8.0, 30.0])
@pytest.mark.parametrize(("part", "name", "size"), CTS)
def test_a_ct_is_off_by_millimetres_and_air_follows(part, name, size, off, data):
    loaded = scan(part, name, data).load()
    ((ct, _),), ((moved, cover),) = loaded.placed(0.0), loaded.placed(off)
    x = np.arange(MATRIX[1]) * size / MATRIX[1]
    expected = np.stack([np.interp(x - off, x, row, left=0.0) for row in ct])
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_array_equal(cover, np.broadcast_to(x >= off, MATRIX))
    assert np.abs(moved - ct).max() > 0.1


def test_every_scan_has_a_ct_of_its_own(data):
    cts = [one.load().placed(0.0)[0][0] for one in held_out_scans()]
    assert all(np.abs(one - other).max() > 0.1 for i, one in enumerate(cts) for other in cts[:i])
    np.testing.assert_array_equal(cts[0], held_out_scans(data)[0].load().placed(0.0)[0][0])


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setitem(CONDITIONS, "full", Condition("all lines", "full", 1, 0))


@pytest.mark.parametrize(("part", "name"), [("cine", "subject 2"), ("view", "series 3"), ("cine", "patient slice 2")])
def test_complete_data_give_the_truth(part, name, data, full):
    """Through whitened data and their colouring: the root sum of squares of the receive coils."""
    loaded = scan(part, name, data).load()
    (cine,) = loaded.measured("full")
    image = Engine("cpu").reconstruct(cine, ReconOptions.of(method="zero_filled", fallback="none")).image
    truth = loaded.truth[0]
    assert nrmse(image * best_scale(image, truth), truth) < 0.1


def test_noise_is_white_and_as_strong_as_said(data, full, monkeypatch):
    found = scan("cine", "patient slice 6", data)
    monkeypatch.setattr(held_out, "_SNR", 1e-9)
    (noise,) = found.load().measured("full")
    samples = noise.kspace.swapaxes(0, 1).reshape(COILS, -1)
    np.testing.assert_allclose(samples @ samples.conj().T / samples.shape[1], 2 * np.eye(COILS), atol=0.1)

    monkeypatch.setattr(held_out, "_SNR", 7.0)
    loaded = found.load()
    (cine,) = loaded.measured("full")
    # in the receive coils: their noise has a deviation of one on average
    signal = np.einsum("rv,fvyx->fryx", cine.receiver.colouring, cine.kspace - noise.kspace)
    coils = ifft(torch.from_numpy(signal), (-2, -1)).numpy()
    seen, truth = np.sqrt((np.abs(coils) ** 2).sum(1)), np.abs(loaded.truth[0])
    np.testing.assert_allclose(seen * best_scale(seen, truth), truth, atol=0.02 * truth.max())
    assert np.quantile(seen[:, dynamic_region(truth)], 0.9) == pytest.approx(7.0, rel=0.02)
    colouring = cine.receiver.colouring
    assert np.mean(np.diag(colouring @ colouring.conj().T).real) == pytest.approx(1.0, rel=1e-3)


def test_the_patient_is_what_was_seen(data):
    loaded = scan("cine", "patient slice 6", data).load()
    with np.load(data / "scd_cine" / "SCD0000301.npz") as arrays:
        seen = arrays["img"][6].astype(np.float32)
    assert loaded.truth.shape == (1, 5, *MATRIX)
    assert loaded.aspect == pytest.approx(1.25 / 1.5)
    rows, columns = (np.arange(n) * 80 // n for n in MATRIX)
    coarse = seen[:, rows][:, :, columns]
    truth = np.abs(loaded.truth[0])
    assert nrmse(truth, coarse) < 0.1  # in its own unit, without shading of coils
    assert np.angle(loaded.truth).std() > 0.1


def test_data_that_cannot_be_read(data, tmp_path):
    with pytest.raises(ResourceError, match=r"SCD0000301.npz.*give a folder with scd_cine, or none"):
        held_out_scans(tmp_path / "nothing")
    path = data / "scd_cine" / "SCD0000301.npz"
    found = scan("cine", "patient slice 2", data)
    np.savez(path, img=np.zeros((1, 2, 8, 8)), pixel_spacing_mm=np.ones(2))
    assert scan("cine", "patient slice 2", data).source != found.source
    with pytest.raises(ResourceError, match=r"slice 2 of the held-out patient"):
        found.load()
    path.write_bytes(b"dear diary")
    with pytest.raises(ResourceError, match="held-out patient"):
        found.load()


@pytest.mark.slow
@needs(DATA / "scd_cine")
def test_the_real_patient():
    for one in held_out_scans(DATA):
        if one.source and one.part == "cine":
            loaded = one.load()
            assert loaded.truth.shape == (1, 20, *MATRIX)
            assert loaded.aspect == pytest.approx(1)
