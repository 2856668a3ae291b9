"""Which machines of a cluster are used.  No Ray is started."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.nodes import home, machines


def node(name: str, cpus: int | None, alive: bool = True) -> dict[str, Any]:
    offered = {"memory": 8e9} if cpus is None else {"CPU": float(cpus), "memory": 8e9}
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{ord(name)}", "Alive": alive, "Resources": offered}


def test_machines_that_offer_no_cpu_hold_no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray start --num-cpus=0` says that a head, or the machine that somebody types on, is not for work."""
    monkeypatch.setattr("ray.nodes", lambda: [node("c", 4), node("a", None), node("b", 2, alive=False), node("d", 8)])
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    assert [(machine.id, machine.cpus, machine.memory) for machine in machines()] == [("c", 4, 8 * 10**9), ("d", 8, 8 * 10**9)]
    assert home().ip == "10.0.0.97"


def test_a_cluster_without_cpus_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts ask Ray for no CPU; nothing else there could be meant."""
    monkeypatch.setattr("ray.nodes", lambda: [node("b", None), node("a", 0)])
    assert [machine.id for machine in machines()] == ["a", "b"]
