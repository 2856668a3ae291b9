"""Who is hosted where: spread so that races cross processes, and never more than the cluster can hold."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import HOST_BYTES, Machine, make_plan, spread
from racevisor.errors import ClusterError, UsageError

GIB = 2**30
SMALL = Machine("a", "10.0.0.1", 2, 16 * GIB)
BIG = Machine("b", "10.0.0.2", 6, 64 * GIB)


def vm(vcpus: int) -> list[str]:
    """The actors of a machine, named and ordered as in init_sipi."""
    return [f"{kind}{i}" for i in range(vcpus) for kind in ("pcpu", "lapic", "vcpu")]


def test_a_small_machine_gets_a_ray_actor_for_each_of_its_actors() -> None:
    """That is what the product is about: actors on real parallel hardware."""
    plan = make_plan(vm(2), [SMALL])
    assert plan.kind == "dedicated" and sorted(plan.place) == [*range(6)]
    assert str(plan) == "dedicated: 6 actors, each a Ray actor of its own, on one machine"


def test_hundreds_of_vcpus_are_packed_one_process_to_a_cpu() -> None:
    """A process each would be 60 GB and five minutes of start-up."""
    plan = make_plan(vm(256), [SMALL])
    assert str(plan) == "packed: 768 actors on 2 Ray actors (384 each), on one machine"


def test_neighbouring_vcpus_are_on_different_hosts_with_their_own_devices() -> None:
    """An IPI from one to the next crosses processes; a vCPU that reads its own LAPIC need not."""
    names = vm(8)
    place = dict(zip(names, spread(names, 3), strict=True))
    assert all(place[f"vcpu{i}"] == place[f"lapic{i}"] == place[f"pcpu{i}"] for i in range(8))
    assert all(place[f"vcpu{i}"] != place[f"vcpu{i + 1}"] for i in range(7))


def test_one_of_a_kind_are_dealt_out_too() -> None:
    """A manager beside the thread that uses it would be one process."""
    assert spread(["kvm", "srcu", "mmu", "vcpu0", "userspace"], 2) == [1, 0, 1, 0, 0]


def test_hosts_are_spread_over_machines_by_their_cpus() -> None:
    """So that races cross machines, and the small one is not drowned."""
    plan = make_plan(vm(64), [SMALL, BIG])
    assert plan.hosts == 8
    assert [machine.id for machine in plan.machines].count("a") == 2
    assert plan.machines[0] != plan.machines[1]
    assert str(plan).endswith("on 2 machines")


def test_a_host_is_called_like_its_only_actor() -> None:
    """In logs and errors; or else by its number."""
    names = vm(2)
    dedicated, packed = make_plan(names, [SMALL], "dedicated"), make_plan(names, [SMALL], "packed")
    assert [dedicated.name(host, names) for host in range(6)] == names
    assert [packed.name(host, names) for host in range(2)] == ["host0", "host1"]


def test_what_the_cluster_cannot_hold_is_refused_with_what_would_fit() -> None:
    """Not after Ray has filled the machine's memory."""
    with pytest.raises(ClusterError, match=r"768 Ray actors are more .* carry 64\n  this fits:  --placement packed"):
        make_plan(vm(256), [SMALL], "dedicated")
    poor = Machine("a", "10.0.0.1", 2, 3 * HOST_BYTES)
    with pytest.raises(ClusterError, match=r"3000 actors on 2 hosts need .* GiB; .*\n  this fits:  (\d+) actors") as caught:
        make_plan(vm(1000), [poor])
    fits = int(str(caught.value).split("fits:  ")[1].split()[0])
    assert make_plan(vm(fits // 3), [poor]).kind == "packed"
    with pytest.raises(ClusterError, match="no machine"):
        make_plan(vm(2), [])


def test_vms_and_hosts_that_are_asked_for_are_packed() -> None:
    """Dedicated, each VM would be processes of its own."""
    assert make_plan(vm(2), [SMALL], vms=4).kind == "packed"
    assert make_plan(vm(2), [SMALL], hosts=3).hosts == 2  # two bundles make two hosts
    assert make_plan(vm(9), [SMALL], hosts=3).hosts == 3
    with pytest.raises(UsageError, match="--hosts is for packed"):
        make_plan(vm(2), [SMALL], "dedicated", hosts=3)


def test_a_placement_can_be_given(tmp_path: Path) -> None:
    """By name or pattern; the first that fits counts."""
    file = tmp_path / "map.json"
    file.write_text('{"vcpu1": 7, "*1": 3, "*": 0}')
    plan = make_plan(vm(2), [SMALL], str(file))
    assert dict(zip(vm(2), plan.place, strict=True)) == {"pcpu0": 0, "lapic0": 0, "vcpu0": 0, "pcpu1": 1, "lapic1": 1, "vcpu1": 2}
    assert str(plan) == "as given: 6 actors on 3 Ray actors (1 to 3 each), on one machine"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"vcpu*": 0}', "has no host for pcpu0"),
        ('{"*": -1}', "not an object of host numbers"),
        ('{"*": true}', "not an object of host numbers"),
        ("[]", "not an object of host numbers"),
        ("{", "cannot read the placement"),
    ],
)
def test_a_placement_that_makes_no_sense_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """With the file's name and what it should look like."""
    file = tmp_path / "map.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=why):
        make_plan(vm(2), [SMALL], str(file))
    with pytest.raises(UsageError, match="cannot read the placement"):
        make_plan(vm(2), [SMALL], "no-such-file")


@given(st.lists(st.from_regex(r"[a-z]+[0-9]{0,2}", fullmatch=True), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_every_host_has_an_actor_and_every_actor_a_host(names: list[str], hosts: int) -> None:
    """An empty host would never be waited for, or be waited for without end."""
    place = spread(names, hosts)
    assert len(place) == len(names) and set(place) == set(range(max(place) + 1))
    plan = make_plan(names, [SMALL, BIG], "packed", hosts)
    assert plan.hosts == max(plan.place) + 1
