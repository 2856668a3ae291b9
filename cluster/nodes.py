"""The machines of the cluster, as Ray lists them."""

from __future__ import annotations

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
