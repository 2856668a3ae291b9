"""The machines of the cluster, as Ray lists them."""

from __future__ import annotations

import socket
import time
from typing import Any

import ray

from cluster.placement import Machine
from racevisor.errors import ClusterError


def machines() -> list[Machine]:
    """The machines that are alive and may be used: `ray start --num-cpus=0` says of one that it is for coordination only."""
    alive = _alive()
    return [machine for machine in alive if machine.cpus] or alive


def home() -> Machine:
    """The machine that the driver belongs to; with Ray Client the head of the cluster, which speaks for it."""
    mine = ray.get_runtime_context().get_node_id()
    for machine in _alive():
        if machine.id == mine:
            return machine
    raise ClusterError("Ray does not list the machine that this runs on\n  see:  ray status")


def _alive() -> list[Machine]:
    nodes: Any = ray.nodes  # untyped
    found = []
    for node in nodes():
        if node["Alive"]:
            offered = node["Resources"]
            found.append(
                Machine(node["NodeID"], node["NodeManagerAddress"], int(offered.get("CPU", 0)), int(offered.get("memory", 0)))
            )
    return sorted(found, key=lambda machine: machine.id)


class Head:
    """The head of the cluster, asked for now and then.  If it stays away for 60 s, Ray ends this process, results and all."""

    #: how often it is asked, how long one question may take, and how long it may be away, in seconds
    EVERY, PATIENCE, GIVE_UP = 2.0, 1.0, 20.0

    def __init__(self) -> None:
        host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self.away = 0.0  # since when
        self._asked = 0.0

    def answers(self, *, now: bool = False) -> bool:
        """Did it, the last time that it was asked?  `now`: ask at once.  ClusterError if it has been away for too long."""
        begun = time.perf_counter()
        if now or begun - self._asked > self.EVERY:
            self._asked = begun
            try:
                socket.create_connection(self.address, timeout=self.PATIENCE).close()
                self.away = 0.0
            except OSError as error:
                self.away = self.away or begun
                if begun - self.away > self.GIVE_UP:
                    raise ClusterError(
                        f"the head of the cluster has been away for {begun - self.away:.0f} s: {error}\n"
                        "  finished rounds are kept; see:  ray status"
                    ) from error
        return not self.away
