"""Folders of the user's called ``weights`` and ``pipelines`` change nothing, whichever way cinestream is started."""

import os
import subprocess
import sys

import pytest

from gadgets.settings.pipelines import list_pipelines
from gadgets.simulation import ScanPlan, simulate
from tests.conftest import PACKAGED
from tests.helpers.gadgetron_parent import Gadgetron
from tests.helpers.paths import REPOSITORY

SCRIPT = "import sys\nfrom gadgets.commands.main import main\nsys.exit(main())\n"  # as pip writes it


@pytest.fixture(params=["folders", "packages"])
def own_folder(request, tmp_path):
    """A working directory that holds other weights and pipelines, as bare folders or as packages."""
    folder = tmp_path / "work"
    for name in ("weights", "pipelines"):
        (folder / name).mkdir(parents=True)
        if request.param == "packages":
            (folder / name / "__init__.py").write_text("raise RuntimeError('imported from the working directory')\n")
    (folder / "weights" / "manifest.yaml").write_text("mine-small: {method: crunet_mr, file: mine.safetensors}\n")
    (folder / "pipelines" / "mine.xml").write_text("<configuration/>")
    (folder / "pipelines" / "cg_sense.xml").write_text("<configuration><method>zero_filled</method></configuration>")
    return folder


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


# packages hold the same files and may be imported by mistake too
either_kind = pytest.mark.parametrize(
    "own_folder", [pytest.param("folders", marks=pytest.mark.slow), "packages"], indirect=True
)


@either_kind
@pytest.mark.parametrize("start", ["module", pytest.param("script", marks=pytest.mark.slow)])
def test_the_command_line_finds_its_own(start, own_folder, tmp_path):
    script = tmp_path / "bin" / "cinestream"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    command = ["-m", "gadgets"] if start == "module" else [str(script)]
    listed = run([*command, "pipelines"], own_folder)
    assert all(f"\n{name}\n" in f"\n{listed}" for name in list_pipelines())
    assert "mine" not in listed.split("settings of a pipeline")[0]
    weights = run([*command, "methods"], own_folder)
    assert weights.count("    weights ") == len(list(PACKAGED.glob("*.safetensors")))
    assert "mine" not in weights


@pytest.mark.slow
@either_kind
def test_a_process_of_a_gadgetron_finds_its_own_weights(own_folder):
    scan = simulate(ScanPlan(matrix_x=32, matrix_y=24, frames=8, coils=4, acceleration=2, acs_lines=8, seed=3))
    settings = "<method>crunet_mr</method><fallback>none</fallback><outside_range>note</outside_range>"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    parent = Gadgetron(f"<configuration>{settings}</configuration>", environment=environment, folder=own_folder)
    outcome = parent.run(scan.header, list(scan.items()))
    assert outcome.errors == []
    assert len(outcome.images) == 8
    assert all("weights crunet_mr-small" in image.attributes for image in outcome.images)
