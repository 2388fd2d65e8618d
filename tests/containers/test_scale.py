"""Manifests of Kubernetes and scripts of Slurm: they can be read, and their parts fit each other and this version."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from gadgets import __version__
from gadgets.commands.main import make_parser
from gadgets.settings.pipelines import find_pipeline
from tests.helpers.paths import REPOSITORY

FOLDER = REPOSITORY / "containers"
SCRIPTS = sorted((FOLDER / "slurm").glob("*.sh"))
MANIFESTS = {path.stem: [*yaml.safe_load_all(path.read_text())] for path in (FOLDER / "kubernetes").glob("*.yaml")}
RAY_IMAGE = (FOLDER / "ray.Dockerfile").read_text(encoding="utf-8")


def parsed(words):
    """Options of a command of this version."""
    assert words[0] == "cinestream"
    return make_parser().parse_args(words[1:])


def pods():
    """Names and specifications of all pods."""
    (deployment,) = [one for one in MANIFESTS["serve"] if one["kind"] == "Deployment"]
    yield "serve", deployment["spec"]["template"]["spec"]
    cluster = MANIFESTS["batch"][0]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group.get("groupName", "head"), group["template"]["spec"]


PODS = dict(pods())


@pytest.mark.parametrize("name", PODS)
def test_pods_are_no_root_and_say_what_they_need(name):
    pod = PODS[name]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # that of the image
    assert container["image"].rpartition(":")[2] == __version__
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_server_is_one_of_this_version():
    kinds = {one["kind"]: one for one in MANIFESTS["serve"]}
    assert set(kinds) == {"Deployment", "PersistentVolumeClaim", "Service", "NetworkPolicy"}
    pod = PODS["serve"]
    (container,) = pod["containers"]
    options = parsed(["cinestream", *container["args"]])
    (port,) = container["ports"]
    (service_port,) = kinds["Service"]["spec"]["ports"]
    (rule,) = kinds["NetworkPolicy"]["spec"]["ingress"]
    assert options.port == port["containerPort"] == service_port["port"] == rule["ports"][0]["port"]
    assert port["name"] == service_port["targetPort"] == container["readinessProbe"]["tcpSocket"]["port"]
    assert options.workers == ("", int(container["resources"]["limits"]["cpu"]) - 1)
    assert pod["terminationGracePeriodSeconds"] > options.grace + 10
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(options.save_raw) in mounts
    assert any(options.noise_store.startswith(mount) for mount in mounts)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    health = parsed(container["livenessProbe"]["exec"]["command"])
    assert health.server == ("127.0.0.1", options.port)


def test_the_parts_of_the_server_find_each_other():
    kinds = {one["kind"]: one for one in MANIFESTS["serve"]}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in PODS["serve"]["volumes"] if "emptyDir" not in volume
    ]
    assert claims == [kinds["PersistentVolumeClaim"]["metadata"]["name"]]


def test_only_the_scanners_reach_it():
    kinds = {one["kind"]: one for one in MANIFESTS["serve"]}
    ranges = kinds["Service"]["spec"]["loadBalancerSourceRanges"]
    blocks = [one["ipBlock"]["cidr"] for one in kinds["NetworkPolicy"]["spec"]["ingress"][0]["from"]]
    assert ranges == blocks
    assert "0.0.0.0/0" not in ranges


def test_the_batch_is_one_of_this_version():
    (job,) = MANIFESTS["batch"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    options = parsed(shlex.split(job["spec"]["entrypoint"]))
    assert options.ray == "auto"
    find_pipeline(options.pipeline)
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # it reconstructs nothing
    assert cluster["rayVersion"] == re.search(r"RAY_VERSION=(\S+)", RAY_IMAGE)[1]
    for name in ("head", "cpu"):  # the head plans, workers work: both see the files
        mounts = {
            mount["mountPath"]: mount.get("readOnly", False) for mount in PODS[name]["containers"][0]["volumeMounts"]
        }
        assert mounts == {str(options.input): True, str(options.output): False}
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_image_with_ray_stands_on_the_plain_one():
    assert f"CINESTREAM_IMAGE=cinestream:{__version__}" in RAY_IMAGE
    assert RAY_IMAGE.index("USER root") < RAY_IMAGE.index("pip install") < RAY_IMAGE.index("USER 10001")
    assert re.findall(r"--tag (\S+)", RAY_IMAGE) == [PODS["cpu"]["containers"][0]["image"]]


# Of `man sbatch`: what a script may ask for here.
DIRECTIVES = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks": "1",
    "ntasks-per-node": "1",
    "cpus-per-task": r"\d+",
    "mem-per-cpu": r"\d+G",
    "time": r"\d\d:\d\d:\d\d",
    "requeue": "",
    "open-mode": "append",
}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_read(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if line and line[0] != "#")
    assert directives == [line for line in lines[:first] if line.startswith("#SBATCH")], "sbatch reads no others"
    for line in directives:
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        assert re.fullmatch(DIRECTIVES[name], value), line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_calls_this_version(path, tmp_path):
    """With stand-ins for Slurm's and Ray's commands: what would be run, and with what."""
    for name in ("srun", "scontrol", "ray"):
        (tmp_path / name).write_text(
            '#!/bin/sh\nif [ "$1" = show ]; then printf "n1\\nn2\\n"; else printf "%s\\n" "$@"; fi\n'
        )
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "12345678"}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    bash = shutil.which("bash")
    ran = subprocess.run(
        [bash, str(path), "my archive", "kt_sense", "my images"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = ran.stdout.splitlines()
    options = parsed(words[words.index("cinestream") :])
    assert (str(options.input), options.pipeline, str(options.output)) == ("my archive", "kt_sense", "my images")
    if path.name == "ray.sh":
        starting = ["--address", "n1:25678", "--min-nodes", "2", "--num-cpus", "8"]
        assert words[1:10] == ["ray", "symmetric-run", *starting, "--"]
        assert options.ray == "auto"
    else:
        assert (options.processes, options.threads, options.ray) == (8, 1, "")
    missing = subprocess.run([bash, str(path)], env=environment, capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "folder or list of raw files" in missing.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_passes_shellcheck(path):
    subprocess.run(["shellcheck", str(path)], check=True)
