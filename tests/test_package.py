"""The archives that are published hold every file that is tracked, and the wheel finds its own."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from gadgets.settings.pipelines import list_pipelines
from tests.helpers.paths import REPOSITORY

PACKAGES = ("gadgets", "pipelines", "recon_core", "weights")
MOST_BYTES = 45e6
WHEEL = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w")


def run(*command, cwd):
    outcome = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if outcome.returncode != 0 and any(name in outcome.stderr for name in ("module named", "BackendUnavailable")):
        pytest.skip("pip or setuptools is not installed")
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def tracked():
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("no git checkout")
    return set(run("git", "ls-files", cwd=REPOSITORY).splitlines())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind in its folder
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run(*WHEEL, folder, source, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_all_files_of_its_packages_and_is_small(wheel, tracked):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {name for name in tracked if name.split("/")[0] in PACKAGES and (REPOSITORY / name).exists()}
    assert wanted <= held
    assert wheel.stat().st_size < MOST_BYTES


def test_the_wheel_finds_its_pipelines_without_a_checkout_and_without_a_folder(wheel, tmp_path):
    """A wheel is an importable zip."""
    code = "import gadgets.settings.pipelines as p; print(p.__file__); print(*p.list_pipelines())"
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}"
    where, names = run(sys.executable, "-c", program, cwd=tmp_path).splitlines()
    assert str(wheel) in where
    assert names.split() == list(list_pipelines())


def test_the_source_archive_holds_everything(tracked, tmp_path):
    run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, cwd=REPOSITORY)
    (sources,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    listed = set(sources.read_text(encoding="utf-8").splitlines())
    assert {name for name in tracked if (REPOSITORY / name).exists()} <= listed
