"""Which host holds which actor, and on which machine of the cluster each host runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from racevisor.errors import ClusterError, UsageError

AUTO, DEDICATED, PACKED = "auto", "dedicated", "packed"
KINDS = (AUTO, DEDICATED, PACKED)

#: What a host's process takes, in bytes: measured 80 MB resident, half of it shared with the others.
HOST_BYTES = 90 * 2**20
#: What one actor takes in a process that holds many, in bytes, its share of the whole machine's wiring included.
ACTOR_BYTES = 60 * 2**10
#: Processes that one CPU can still switch between; each takes a quarter of a second to start.
HOSTS_PER_CPU = 32
#: With more actors than this for each CPU they are packed by default.
DEDICATED_PER_CPU = 4


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster, as far as Ray offers it: its CPUs, and its memory in bytes."""

    id: str
    ip: str
    cpus: int
    memory: int


@dataclass(frozen=True)
class Plan:
    """`place` tells the host of each actor, by number; `machines` the machine of each host."""

    kind: str
    place: tuple[int, ...]
    machines: tuple[Machine, ...]

    @property
    def hosts(self) -> int:
        """How many there are."""
        return len(self.machines)

    def name(self, host: int, names: Sequence[str]) -> str:
        """What a host is called in logs: like its actor, if it holds one only."""
        mine = [name for name, at in zip(names, self.place, strict=True) if at == host]
        return mine[0] if len(mine) == 1 else f"host{host}"

    def __str__(self) -> str:
        actors, hosts = len(self.place), self.hosts
        nodes = len({machine.id for machine in self.machines})
        where = "one machine" if nodes == 1 else f"{nodes} machines"
        if self.kind == DEDICATED:
            return f"dedicated: {actors} actors, each a Ray actor of its own, on {where}"
        counts = sorted({self.place.count(host) for host in range(hosts)})
        each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{self.kind}: {actors} actors on {hosts} Ray actor{'s' if hosts > 1 else ''} ({each} each), on {where}"


def make_plan(
    names: Sequence[str], machines: Sequence[Machine], kind: str = AUTO, hosts: int | None = None, vms: int = 1
) -> Plan:
    """Place the actors called `names` on a cluster, `vms` machines of them alike.

    `kind` is auto, dedicated, packed, or the path of a JSON file with the host of each actor by name pattern.  `hosts` is how
    many processes they are packed into: one for each CPU unless it is said, and at least two, so that races cross processes.
    Raises ClusterError, saying what would fit, if the cluster cannot hold that.
    """
    if not machines:
        raise ClusterError("the cluster has no machine that is alive\n  see:  ray status")
    cpus = max(1, sum(machine.cpus for machine in machines))
    if kind not in KINDS:
        return _placed(names, machines, Path(kind), vms)
    if kind == AUTO:
        fits = len(names) <= DEDICATED_PER_CPU * cpus and len(names) <= _most_hosts(machines, vms) and hosts is None and vms == 1
        kind = DEDICATED if fits else PACKED
    if kind == DEDICATED:
        if hosts is not None:
            raise UsageError(f"dedicated placement has a host for each of the {len(names)} actors\n  --hosts is for packed")
        place = list(range(len(names)))
        wanted = len(names)
    else:
        place = spread(names, min(hosts or max(2, cpus), len(names)))
        wanted = max(place) + 1
    return _checked(Plan(kind, tuple(place), _machines(machines, wanted)), machines, vms, cpus)


def spread(names: Sequence[str], hosts: int) -> list[int]:
    """Deal out the actors: a vCPU with its LAPIC and physical CPU, the next vCPU to the next host, what is one of a kind in turn.

    So an IPI between two vCPUs, and most accesses to what vCPUs share, go from process to process.
    """
    place = []
    single = 1  # not beside vCPU 0, which most often is alone with it
    for name in names:
        number = re.search(r"\d+$", name)
        if number is not None:
            place.append(int(number.group()) % hosts)
        else:
            place.append(single % hosts)
            single += 1
    used = sorted(set(place))  # a host without actors would be a process without work
    return [used.index(host) for host in place]


def _placed(names: Sequence[str], machines: Sequence[Machine], path: Path, vms: int) -> Plan:
    """As the file says: {"vcpu*": 0, "lapic1": 1, ...}, the first pattern that fits a name."""
    try:
        rules: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the placement {path}: {error}\n  --placement is {', '.join(KINDS)}, or a JSON file like"
            f' {{"vcpu0": 0, "vcpu*": 1, "*": 0}}'
        ) from error
    sound = isinstance(rules, dict) and rules and all(type(host) is int and 0 <= host < 10_000 for host in rules.values())
    if not sound:
        raise UsageError(f'the placement {path} is not an object of host numbers by actor name, like {{"vcpu0": 0, "*": 1}}')
    place = []
    for name in names:
        host = next((host for pattern, host in rules.items() if fnmatchcase(name, pattern)), None)
        if host is None:
            raise UsageError(f'the placement {path} has no host for {name}\n  the last line may be for all others:  "*": 0')
        place.append(host)
    used = sorted(set(place))
    place = [used.index(host) for host in place]
    cpus = max(1, sum(machine.cpus for machine in machines))
    return _checked(Plan("as given", tuple(place), _machines(machines, len(used))), machines, vms, cpus)


def _machines(machines: Sequence[Machine], hosts: int) -> tuple[Machine, ...]:
    """Neighbouring hosts on different machines, in proportion to their CPUs."""
    taken = dict.fromkeys(machines, 0)
    chosen = []
    for _ in range(hosts):
        least = min(machines, key=lambda machine: taken[machine] / max(1, machine.cpus))
        taken[least] += 1
        chosen.append(least)
    return tuple(chosen)


def _most_hosts(machines: Sequence[Machine], vms: int) -> int:
    memory = sum(machine.memory for machine in machines)
    return max(1, min(HOSTS_PER_CPU * sum(max(1, machine.cpus) for machine in machines), memory // HOST_BYTES))


def _checked(plan: Plan, machines: Sequence[Machine], vms: int, cpus: int) -> Plan:
    memory = sum(machine.memory for machine in machines)
    most = _most_hosts(machines, vms)
    if plan.hosts > most:
        raise ClusterError(
            f"{plan.hosts} Ray actors are more than the cluster can hold: {cpus} CPUs and {memory / 2**30:.1f} GiB carry {most}\n"
            f"  this fits:  --placement packed"
        )
    # Every host builds the whole machine, and the driver another one.
    needed = plan.hosts * HOST_BYTES + (plan.hosts + 1) * vms * len(plan.place) * ACTOR_BYTES
    if needed > memory:
        fits = (memory - plan.hosts * HOST_BYTES) // ((plan.hosts + 1) * ACTOR_BYTES)
        raise ClusterError(
            f"{vms * len(plan.place)} actors on {plan.hosts} hosts need {needed / 2**30:.1f} GiB;"
            f" the cluster has {memory / 2**30:.1f}\n"
            f"  this fits:  {max(0, fits)} actors in all, with fewer --vcpus, --vms or --hosts"
        )
    return plan
