"""How a Ray cluster is reached, and what is said where it cannot be."""

import re
import socket
import sys

import pytest

from recon_core.cluster import Cluster, first_line
from recon_core.errors import ResourceError, SettingsError
from tests.helpers.stand_in_ray import ADDRESS, StandIn


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "threads", "gpu", "wanted"),
    [
        (8, 0, 0, 1, True, 8),
        (8, 0, 0, 3, True, 2),
        (8, 3, 0, 2, True, 3),
        (8, 3, 0, 2, False, 4),
        (8, 3, 5, 1, True, 5),
        (1, 0, 0, 4, True, 1),
    ],
)
def test_there_is_one_actor_for_each_gpu_or_for_its_threads(cpus, gpus, count, threads, gpu, wanted, stand_in):
    ray = stand_in(cpus=cpus, gpus=gpus)
    cluster = Cluster(ADDRESS, count, threads, gpu=gpu)
    cluster.actors(dict).remote()
    assert cluster.count == wanted
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (threads, int(gpu and gpus > 0))
    assert ray.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "most"), [(8, 0, 0, 8), (8, 0, 3, 3), (8, 2, 0, 2), (8, 2, 5, 2), (0, 0, 2, 1)]
)
def test_how_many_may_share_a_machine_is_known(cpus, gpus, count, most, stand_in):
    stand_in(cpus=cpus, gpus=gpus)
    assert Cluster(ADDRESS, count, 1).most_on_one == most


@pytest.mark.parametrize(("cpus", "threads", "room"), [(8, 1, 5), (8, 2, 4), (1, 2, 0)])
def test_where_there_is_room_actors_are_waited_for_longer(cpus, threads, room, stand_in, monkeypatch):
    monkeypatch.setattr("recon_core.cluster.START_SECONDS", 7.0)
    stand_in(cpus=cpus)
    cluster = Cluster(ADDRESS, 5, threads)
    assert (cluster.room, cluster.patience) == (room, 7.0 if room else 0.05)
    assert "no worker within" in str(cluster.nothing_given())


@pytest.mark.parametrize(
    ("refuse", "texts"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.1"),
            ["Version mismatch", "same versions"],
        ),
        (ConnectionError("Could not find any running Ray instance."), ["no Ray cluster at", "ray start --head"]),
        (ValueError("Ray Client requires pip package `ray[client]`. If you"), ['needs pip install "ray[client]"']),
    ],
)
def test_a_cluster_that_refuses_is_said(refuse, texts, stand_in):
    stand_in(refuse=refuse)
    with pytest.raises(ResourceError) as caught:
        Cluster(ADDRESS, 1, 1)
    assert all(text in str(caught.value) for text in texts)


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ResourceError, match=re.escape('pip install "cinestream[cluster]"')):
        Cluster("local", 1, 1)


@pytest.mark.parametrize("address", ["nowhere", ":1", "h:x"])
def test_what_is_no_address_is_refused(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with pytest.raises(SettingsError, match="HOST:PORT"):
        Cluster(address, 1, 1)


@pytest.mark.parametrize("named", [False, True])
def test_an_address_where_nobody_answers_is_said_at_once(named, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address if named else "")
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at {address}"):
        Cluster("auto" if named else address, 1, 1)


def test_a_death_is_told_without_the_causes_that_ray_thinks_of():
    class ActorDiedError(Exception):
        pass

    death = "The actor is dead because its worker process has died. Worker exit detail: End of file."
    text = f"The actor died unexpectedly.\n\tclass_name: RayRunner\n{death} Some common causes include: memory."
    assert first_line(ActorDiedError(text)) == death
    assert first_line(ValueError("")) == "ValueError"


def test_what_a_client_of_ray_says_is_told():
    class RpcError(Exception):
        def details(self):
            return "the session is gone"

    assert first_line(RpcError("<_InactiveRpcError of RPC that terminated with:\n ...>")) == "the session is gone"
