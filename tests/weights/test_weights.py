"""The packaged weights: whole, described, and of use."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gadgets.evaluation.held_out import held_out_scans
from recon_core.api import reconstruct
from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.methods import METHODS
from recon_core.metrics.scores import measure, scaled
from recon_core.options import ReconOptions
from recon_core.simulate.kspace import simulate_cine
from recon_core.training.trainer import scores
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import list_weights
from tests.conftest import PACKAGED

MOST_BYTES = 43e6
#: PSNR in dB on the scan below, as it was with the weights in the float32 of their training.
IN_FLOAT32 = {
    "crunet_mr-small": 28.88,
    "crnn_mri-small": 29.43,
    "unet3d_mr-small": 31.10,
    "cinenet-small": 29.54,
    "promptmr-small": 28.75,
    "cst_net-small": 29.62,
    "dual_unet_resnet3d-small": 27.20,
    "unrolled_resnet3d-small": 29.25,
    "atlf_net-small": 28.27,
    "dstdm-small": 30.57,
}


@pytest.fixture
def packaged(monkeypatch):
    monkeypatch.setattr("recon_core.weights.manifest._packaged", lambda: PACKAGED)
    return list_weights()


def test_every_file_is_listed_and_every_entry_complete(packaged):
    files = {path.name for path in PACKAGED.glob("*.safetensors")}
    assert {entry.file.name for entry in packaged.values()} == files
    assert files
    assert sum(path.stat().st_size for path in PACKAGED.glob("*.safetensors")) < MOST_BYTES
    assert set(packaged) == set(IN_FLOAT32)
    for name, entry in packaged.items():
        assert name == f"{entry.method}-small"
        assert METHODS[entry.method].network
        assert entry.licence == "Apache-2.0"
        assert entry.range.acceleration[1] >= 4
        assert entry.weighing or (entry.limits.residual and entry.limits.change)
        assert entry.training["steps"] >= 1000
        assert entry.metrics["survey"]["median_gain"] > 0


def test_every_file_is_loaded(packaged):
    for entry in packaged.values():
        network = load_network(entry, torch.device("cpu"))
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "dstdm-small")) for name in IN_FLOAT32]
)
def test_images_are_those_of_the_weights_in_float32(packaged, name, monkeypatch):
    """Measured from the start and with the maps that they were trained with, and not weighed against anything."""
    entry = replace(packaged[name], start="cg_sense", weighing=None)
    monkeypatch.setattr("recon_core.inference.method.find_weights", lambda *_: entry)
    scan = simulate_cine(frames=8, matrix=(48, 64), coils=4, acceleration=4, seed=5)
    method = packaged[name].method
    options = ReconOptions.of(
        method=method, weights=name, outside_range="note", fallback="none", sampler="fastest", seed=1, maps="walsh"
    )
    image = Engine("cpu").reconstruct(CineSlice(scan.kspace, scan.mask), options)
    assert image.method == method
    assert scores(image.image, scan.image)[0] == pytest.approx(IN_FLOAT32[name], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["cine", "view", "realtime"])
def test_what_is_sent_is_not_worse_than_the_reference(packaged, part):
    """Of a scan of every part of the suite, on which the ranges were chosen too: they must hold in the engine."""
    scan = next(scan for scan in held_out_scans() if scan.part == part).load()
    engine, gains = Engine("cpu"), {}
    data = scan.measured("interleaved_8")[0]
    references = {
        name: engine.reconstruct(data, ReconOptions.of(method=name))
        for name in {entry.reference for entry in packaged.values()}
    }
    for entry in packaged.values():
        image = engine.reconstruct(data, ReconOptions.of(method=entry.method, weights=entry.name))
        assert image.method in (entry.method, "kt_sense")  # which is sent for what is outside the range
        ours, theirs = (scores(each.image, scan.truth[0])[0] for each in (image, references[entry.reference]))
        gains[entry.name] = ours - theirs
    assert min(gains.values()) >= -0.2
    assert np.max([*gains.values()]) > 0.3


@pytest.mark.filterwarnings("ignore:the images of crunet_mr are doubtful")  # as they hardly count on easy scans
@pytest.mark.parametrize(
    ("sampling", "acceleration", "acs_lines", "seed"),
    [
        ("variable_density", 6, 24, 3),
        pytest.param("variable_density", 6, 24, 4, marks=pytest.mark.slow),
        pytest.param("variable_density", 6, 24, 5, marks=pytest.mark.slow),
        pytest.param("uniform", 3, 24, 0, marks=pytest.mark.slow),
        pytest.param("uniform", 4, 24, 3, marks=pytest.mark.slow),
        pytest.param("uniform", 8, 16, 3, marks=pytest.mark.slow),
        pytest.param("interleaved", 6, 0, 3, marks=pytest.mark.slow),
    ],
)
def test_crunet_mr_is_not_worse_than_its_start(packaged, sampling, acceleration, acs_lines, seed):
    """Whole, where it moves, and in the worst place of the time average, also where its own image is worse by far."""
    plan = {"sampling": sampling, "acceleration": acceleration, "acs_lines": acs_lines, "seed": seed}
    scan = simulate_cine(frames=16, matrix=(96, 112), coils=8, **plan)
    entry = packaged["crunet_mr-small"]
    names = {"weights": entry.name, "outside_range": "note"}
    images = [
        reconstruct(
            scan.kspace, method, mask=scan.mask, noise_covariance=scan.noise_covariance, fallback="none", **more
        ).image
        for method, more in (("kt_sense", {}), (entry.method, names))
    ]
    images = [scaled([np.abs(image)], scan.image[None])[0] for image in images]
    start, ours = (measure([image], [scan.image]) for image in images)
    for score in ("psnr", "dynamic_psnr"):
        assert ours[score] > start[score] - 0.2
    start_streak, our_streak = (np.abs((image - np.abs(scan.image)).mean(0)).max() for image in images)
    assert our_streak < start_streak + 0.05 * np.abs(scan.image).max()
