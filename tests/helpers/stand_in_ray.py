"""A stand-in for Ray: actors are objects of this process, whose methods run when their answers are fetched."""

import sys
import time
import types

import pytest

from recon_core import cluster

ADDRESS = "127.0.0.1:1"


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class Actor:
    """What stands for an object elsewhere."""

    def __init__(self, number, behind):
        self.number, self.behind, self.dead = number, behind, False

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *arguments: Answer(self, name, arguments))


class Answer:
    """What a call of an actor gives at once."""

    def __init__(self, actor, call, arguments):
        self.actor, self.call, self.arguments = actor, call, arguments


class StandIn(types.ModuleType):
    """What of Ray is used.

    Parameters
    ----------
    make
        Gives the object of an actor, of its class and the arguments.
    cpus, gpus
        Of the cluster.
    most
        Actors that it gives.
    refuse
        Raised by who wants to reach it.
    """

    def __init__(self, make=lambda kind, *arguments: kind(*arguments), cpus=2, gpus=0, most=100, refuse=None):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayError=RayError)
        self.most, self._resources = most, {"CPU": cpus, "GPU": gpus}
        self._make, self._refuse = make, refuse
        self.options, self.actors, self.killed, self.shut = {}, [], 0, 0
        self.is_connected = False

    @property
    def started(self):
        return len(self.actors)

    def init(self, **options):
        if self._refuse is not None:
            raise self._refuse
        self.is_connected = True

    def is_initialized(self):
        return self.is_connected

    def lose(self, refuse=None):
        """Break the connection, with all actors; `refuse` is raised by who wants to reach it."""
        self.is_connected, self._refuse = False, refuse

    def cluster_resources(self):
        return self._resources

    available_resources = cluster_resources

    def nodes(self):
        return [{"Alive": True, "Resources": self._resources}, {"Alive": False, "Resources": {"CPU": 100}}]

    def remote(self, kind):
        def options(**chosen):
            self.options = chosen
            return types.SimpleNamespace(remote=lambda *arguments: self._start(kind, arguments))

        return types.SimpleNamespace(options=options)

    def _start(self, kind, arguments):
        if not self.is_connected:
            raise RayError("Ray has not been started yet")
        self.actors.append(Actor(len(self.actors) + 1, self._make(kind, *arguments)))
        return self.actors[-1]

    def wait(self, answers, num_returns, timeout):
        assert len(answers) >= num_returns
        return [one for one in answers if one.actor.number <= self.most][:num_returns], []

    def get(self, answer, timeout=None):
        if not self.is_connected:
            raise ConnectionError("Failed during this or a previous request")
        while answer.actor.number > self.most and not answer.actor.dead:
            time.sleep(0.005)
        if not answer.actor.dead:
            try:
                return getattr(answer.actor.behind, answer.call)(*answer.arguments)
            except ActorDiedError:
                answer.actor.dead = True
                raise
        raise ActorDiedError("The actor is dead.")

    def kill(self, actor):
        actor.dead = True
        self.killed += 1

    def shutdown(self):
        self.shut += 1


@pytest.fixture
def stand_in(monkeypatch):
    """Put a stand-in in the place of Ray."""

    monkeypatch.setattr(cluster, "_reach", lambda _: None)
    for name in ("START_SECONDS", "ROOM_SECONDS"):
        monkeypatch.setattr(cluster, name, 0.05)

    def make(**options):
        ray = StandIn(**options)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return make
