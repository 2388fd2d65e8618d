"""What can be said of the images without a Docker: that nothing they are made from is missing, loose or too much."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from gadgets import __version__
from gadgets.commands.main import make_parser
from gadgets.settings import openrecon
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings, apply, parse_assignments
from tests.helpers.paths import REPOSITORY

FOLDER = REPOSITORY / "containers"
FILES = ("Dockerfile", "gadgetron.Dockerfile")
SCRIPTS = sorted((FOLDER / "fire").glob("*.sh"))


@dataclass
class Stage:
    name: str
    base: str
    steps: list = field(default_factory=list)

    def of(self, instruction):
        return [text for found, text in self.steps if found == instruction]


def parse(name):
    """Arguments before the first FROM, and the stages."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / name).read_text(encoding="utf-8"), flags=re.MULTILINE).replace(
        "\\\n", " "
    )
    arguments, stages = {}, []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages.append(Stage(stage.strip() or "final", base.strip()))
        elif stages:
            stages[-1].steps.append((instruction, rest.strip()))
        else:
            assert instruction == "ARG", line
            key, _, value = rest.partition("=")
            arguments[key] = value
    return arguments, stages


STAGES = {stage.name: stage for stage in parse("Dockerfile")[1]}


def ancestry(name):
    """A stage, and those it stands on."""
    while name in STAGES:
        yield STAGES[name]
        name = STAGES[name].base


def last(name, instruction):
    """What counts of an instruction in an image."""
    return next((stage.of(instruction)[-1] for stage in ancestry(name) if stage.of(instruction)), None)


def ignored(path):
    """Whether .dockerignore keeps a file of the repository from the builder; the last pattern that fits counts."""
    outcome = False
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!").strip("/")
        expression = re.escape(wanted).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{expression}(/.*)?", path):
            outcome = not pattern.startswith("!")
    return outcome


# --- what goes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_everything_copied_is_there_and_reaches_the_builder(name):
    copies = [text for stage in parse(name)[1] for text in stage.of("COPY")]
    assert copies
    for text in copies:
        *sources, _ = [word for word in shlex.split(text) if not word.startswith("--")]
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert not ignored(source), source


def test_the_wheel_has_all_packages():
    metadata = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'"([a-z_.]+)"', re.search(r"packages = \[(.*?)\]", metadata, re.DOTALL)[1])
    copied = {word for name in FILES for stage in parse(name)[1] for text in stage.of("COPY") for word in text.split()}
    assert {package.split(".")[0] for package in packages} <= copied


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        "tests/helpers/peers.py",
        "demo/scan.h5",
        "dist/image.tar",
        ".venv/bin/python",
        "docs/cine.gif",
        "scan.h5",
        "gadgets/__pycache__/chain.cpython-311.pyc",
        "containers/package.py",
    ],
)
def test_what_has_no_place_in_an_image_stays_out(path):
    assert ignored(path)


@pytest.mark.parametrize("name", FILES)
def test_what_the_images_import_is_there(name):
    imports = re.findall(r"from ([\w.]+) import (\w+)", (FOLDER / name).read_text(encoding="utf-8"))
    modules = re.findall(r'python -c "import ([\w.]+)', (FOLDER / name).read_text(encoding="utf-8"))
    assert imports or modules
    for module, attribute in imports:
        assert hasattr(importlib.import_module(module), attribute)
    for module in modules:
        importlib.import_module(module)


def test_what_belongs_in_reaches_the_builder():
    tracked = subprocess.run(
        ["git", "ls-files", "gadgets", "recon_core", "pipelines", "weights"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("no git checkout")
    assert not [path for path in tracked if ignored(path)]


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_images_are_named_by_version(name):
    arguments, stages = parse(name)
    known = {stage.name for stage in stages}
    for base in [stage.base for stage in stages] + [value for key, value in arguments.items() if key.endswith("IMAGE")]:
        if base in known or base.startswith("${") or not base:
            continue
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base), base
    assert ":latest" not in (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_declared_where_it_is_used(name):
    arguments, stages = parse(name)
    for stage in stages:
        for used in re.findall(r"\$\{([A-Z_]+)\}", stage.base):
            assert used in arguments, f"{stage.base} in {stage.name}"
    for stage in stages:
        declared = {"PATH", *(text.partition("=")[0] for text in stage.of("ARG"))}
        for instruction, text in stage.steps:
            for used in re.findall(r"\$\{([A-Z_]+)\}", text):
                assert used in declared, f"{instruction} {text}"


@pytest.mark.parametrize("name", FILES)
def test_packages_have_versions(name):
    for stage in parse(name)[1]:
        for text in stage.of("RUN"):
            for command in re.findall(r"pip install (.*?)(?:&&|$)", text):
                assert "--no-cache-dir" in command
                pinned = "--constraint" in command or "--no-deps" in command
                words = [word.strip('"') for word in command.split()]
                loose = [word for word in words if re.fullmatch(r"[a-z][a-z_-]*", word)]
                assert pinned or not loose, command
                assert all("torch==" in word for word in words if word.startswith("torch"))


def test_examples_name_this_version():
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES)
    tags = re.findall(r"--tag \S+?:(\S+)", text)
    assert len(tags) == 4
    assert set(tags) == {__version__}


def test_constraints_hold_all_that_is_installed():
    """Every package that the wheel asks for has its one version; torch has an argument."""
    lines = (FOLDER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_]+==[0-9][0-9.]*", line) for line in pinned)
    assert pinned == sorted(pinned)
    versions = dict(line.split("==") for line in pinned)
    metadata = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    wanted = dict(
        re.findall(r'"([a-z0-9]+)>=([0-9.]+)"', re.search(r"\ndependencies = \[(.*?)\]", metadata, re.DOTALL)[1])
    )
    del wanted["torch"]
    for package, least in wanted.items():
        assert numbers(versions[package]) >= numbers(least), package


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_torch_is_one_that_scanners_take_and_the_project_allows():
    arguments, _ = parse("Dockerfile")
    assert arguments["ACCELERATOR"] == "cpu"
    defaults = dict(text.split("=", 1) for text in STAGES["base"].of("ARG") if "=" in text)
    assert defaults["TORCH_INDEX"] == "https://download.pytorch.org/whl"
    metadata = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'"torch>=([0-9.]+)"', metadata)[1]
    assert numbers(defaults["TORCH_VERSION"])[:2] == numbers(least)[:2], "the images hold the oldest torch allowed"
    assert any("<= 11.8" in text for text in STAGES["openrecon"].of("RUN"))


# --- the targets ------------------------------------------------------------------------------------------------------


def served(command):
    """The arguments of the cinestream that a command starts, parsed as it would parse them."""
    words = re.split(r"\bcinestream |python3 -m gadgets ", command)[-1]
    return make_parser().parse_args(shlex.split(re.sub(r"\s*(>\S+\s*)?2>&1( &)?\s*$", "", words)))


@pytest.mark.parametrize("target", ["plain", "fire", "openrecon"])
def test_targets_expose_what_they_listen_on(target):
    assert last(target, "EXPOSE") == str(openrecon.PORT)
    (command,) = STAGES[target].of("CMD")
    words = parse_list(command)
    if target == "plain":
        options = make_parser().parse_args(words)
        assert parse_list(STAGES[target].of("ENTRYPOINT")[0]) == ["cinestream"]
    elif target == "openrecon":
        assert words[:2] == ["/bin/bash", "-c"]
        options = served(words[2])
    else:
        script = (FOLDER / "fire" / "start.sh").read_text(encoding="utf-8")
        options = served(script.strip().splitlines()[-1])
    assert (options.host, options.port) == ("0.0.0.0", openrecon.PORT)
    assert options.verbose == 1
    for name in parse_assignments(options.alias).values():
        find_pipeline(name)
    apply(Settings(), parse_assignments(options.set))


def parse_list(text):
    found = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert text.startswith("["), f"exec form expected, so that signals arrive: {text}"
    return found


def test_openrecon_is_what_a_scanner_starts():
    stage = STAGES["openrecon"]
    assert last("openrecon", "USER") is None, "the scanner wants root"
    assert last("openrecon", "ENTRYPOINT") is None
    assert f'"{openrecon.LABEL_KEY}"="${{OPENRECON_LABEL}}"' in stage.of("LABEL")
    command = parse_list(stage.of("CMD")[0])[2]
    assert re.match(r"/usr/sbin/ldconfig; exec cinestream ", command), "ldconfig for the GPU, exec for SIGTERM"
    assert command.endswith("2>&1"), "the scanner keeps standard output"
    assert parse_assignments(served(command).alias) == {"openrecon": "cg_sense"}
    assert any("openrecon-label --base64" in text for text in stage.of("RUN")), "a stale label must not be built"


def test_openrecon_hands_its_process_to_the_server(tmp_path):
    """SIGTERM goes to the process that was started; a shell in between would keep it."""
    (tmp_path / "cinestream").write_text('#!/bin/bash\necho "$$ $*"; echo log >&2\n', encoding="utf-8")
    (tmp_path / "cinestream").chmod(0o755)
    command = parse_list(STAGES["openrecon"].of("CMD")[0])
    command[2] = command[2].replace("/usr/sbin/ldconfig", "false")  # as on a file system that cannot be written
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out = process.communicate(timeout=20)[0].splitlines()
    assert out[0].startswith(f"{process.pid} --verbose serve")
    assert out[1] == "log"


def test_plain_is_not_root_and_keeps_raw_data_in_a_volume():
    stage = STAGES["plain"]
    (user,) = stage.of("USER")
    assert int(user) > 0, "by number, so that orchestrators see that it is not root"
    (volume,) = stage.of("VOLUME")
    options = make_parser().parse_args(parse_list(stage.of("CMD")[0]))
    assert str(options.save_raw) == volume
    check = parse_list(stage.of("HEALTHCHECK")[0][stage.of("HEALTHCHECK")[0].index("[") :])
    options = make_parser().parse_args(check[1:])
    assert options.server == ("127.0.0.1", openrecon.PORT)


def test_fire_starts_its_script():
    assert last("fire", "USER") is None
    assert parse_list(STAGES["fire"].of("CMD")[0])[0] in STAGES["fire"].of("COPY")[0]


def test_gadgetron_gets_its_user_back():
    arguments, stages = parse("gadgetron.Dockerfile")
    assert arguments["GADGETRON_IMAGE"] == ""
    users = stages[-1].of("USER")
    assert users[0] == "0"
    assert users[-1] == "1000"


def test_the_gadgetrons_image_gets_the_pipelines_next_to_its_own(tmp_path):
    _, stages = parse("gadgetron.Dockerfile")
    config = tmp_path / stages[-1].of("ARG")[0].partition("=")[2].lstrip("/") / "share" / "gadgetron" / "config"
    config.mkdir(parents=True)
    (config / "grappa.xml").write_text("<gadgetronStreamConfiguration/>", encoding="utf-8")
    command = re.search(r"(cinestream pipelines --install \S+)", stages[-1].of("RUN")[-1])[1]
    command = command.replace("cinestream", f"{sys.executable} -m gadgets")
    environment = {**os.environ, "GADGETRON_HOME": str(config.parents[2])}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (config / "grappa.xml").read_text(encoding="utf-8") == "<gadgetronStreamConfiguration/>"
    assert (config / "cinestream_grappa.xml").is_file()


# --- scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_fit_for_linux(script):
    raw = script.read_bytes()
    assert raw.startswith(b"#!/bin/bash\n")
    assert b"\r" not in raw
    assert script.stat().st_mode & 0o111 == 0o111
    assert re.search(rb"^set -e?u", raw, re.MULTILINE)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
