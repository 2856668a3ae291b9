"""Twins: a variant that does the same as another one is not searched again, and nothing that can tell them apart is missed."""

from pathlib import Path

import pytest

from racevisor.explore import Verdict, cases, explore, explore_case
from racevisor.scenario import Sometimes

PEEK = """
from actors.ops import READ_ONCE, WRITE_ONCE
from actors.thread import Thread
from racevisor import Scenario, Setup, Variant


async def publish(me):
    await WRITE_ONCE(me.vm.memory.x, 1)


async def publish_twice(me):
    await WRITE_ONCE(me.vm.memory.x, 1)
    await WRITE_ONCE(me.vm.memory.x, 1)


async def publish_late(me):
    if await READ_ONCE(me.vm.memory.quiet):
        return await publish_twice(me)
    await publish(me)


async def publish_late_as_well(me):
    if await READ_ONCE(me.vm.memory.quiet):
        return None
    await publish(me)


async def reader(me):
    me.seen = await READ_ONCE(me.vm.memory.x)


async def other_reader(me):
    seen = await READ_ONCE(me.vm.memory.x)
    me.seen = seen


async def proud_reader(me):
    me.seen = bool(await READ_ONCE(me.vm.memory.x))


async def run(me):
    await me.vm.calls.publish(me)


async def look(me):
    await me.vm.calls.reader(me)


class Peek(Scenario):
    name = "peek"
    fixed = "once"
    variants = {
        "once": Variant("one store", claims={"*": "Sometimes"}),
        "other": Variant("reads in other words", {"reader": other_reader}, {"*": "Sometimes"}),
        "twice": Variant("two stores", {"publish": publish_twice}, {"*": "Sometimes"}),
        "late": Variant("asks first", {"publish": publish_late}, {"*": "Sometimes"}),
        "late_as_well": Variant("asks first", {"publish": publish_late_as_well}, {"*": "Sometimes"}),
        "proud": Variant("1 is True", {"reader": proud_reader}, {"*": "Sometimes"}),
        "judged": Variant("a check asks for it", {"judge": publish_twice}, {"*": "Never"}),
        "built": Variant("build asks for it", {"start": publish_twice}, {"*": "Always"}),
        "exempt": Variant("promises less", claims={"*": "Sometimes"}, exempt={"nothing": "no check is called that"}),
    }
    functions = {"publish": publish, "reader": reader, "judge": publish, "start": publish}

    def build(self, vm, setup):
        vm.guest_memory(x=1 if vm.calls.start is publish_twice else 0, quiet=0)
        Thread(vm, "writer", run)
        Thread(vm, "reader", look, seen=0)

    def exists(self, vm):
        return bool(vm.by_name["reader"].seen) and vm.calls.judge is publish
"""


def twins_of(tmp_path: Path, jobs: int) -> dict[str, Verdict]:
    """What is found of the scenario above, by variant."""
    (tmp_path / "peek.py").write_text(PEEK, encoding="utf-8")
    found = list(explore(cases(str(tmp_path / "peek.py")), jobs=jobs, to_the_end=True))
    assert all(v.confirmed for v in found), [(v.variant, v.finding) for v in found]
    return {v.variant: v for v in found if v.memory == "sc"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_variants_whose_threads_do_the_same_are_searched_once(tmp_path: Path, jobs: int) -> None:
    """Both ask `quiet`, which stays 0; what they would do otherwise is never asked.  The ledger says whose search it was."""
    found = twins_of(tmp_path, jobs)
    late = found["late_as_well"]
    assert late.bound.startswith("the same behaviour as late: all ") and late.claimed == Sometimes
    assert found["other"].bound.startswith("the same behaviour as once: all ")
    alone = {
        v: explore_case(c, to_the_end=True)
        for v in ("other", "late_as_well")
        for c in cases(str(tmp_path / "peek.py"), [v], memories=["sc"])
    }
    for variant, verdict in alone.items():
        assert (verdict.states, verdict.found) == (found[variant].states, found[variant].found)


def test_variants_that_differ_in_what_a_search_can_see_are_no_twins(tmp_path: Path) -> None:
    """One op more, another type of a private value, another check, another machine, fewer promises: each is searched."""
    found = twins_of(tmp_path, 1)
    for variant in ("once", "twice", "late", "proud", "judged", "built", "exempt"):
        assert not found[variant].bound.startswith("the same"), (variant, found[variant].bound)


@pytest.mark.parametrize(
    ("scenario", "setup", "variants"),
    [
        ("init_sipi", "init_only", ()),
        ("synic_message", "eoi_last", ("after", "no_retry", "today", "S-M3v", "S-M11", "S-7c")),
    ],
)
def test_a_twin_has_the_numbers_of_its_own_search(scenario: str, setup: str, variants: tuple[str, ...]) -> None:
    """Every number, not only the word: the search of a twin would have been the same, step by step.

    S-M3v of synic_message replaces a function that is called nowhere but where the machine is built and its checks are made.
    """
    wanted = cases(scenario, variants, [setup], ["sc"])
    found = list(explore(wanted, jobs=1))
    assert sum(v.bound.startswith("the same") for v in found) >= 2
    for case, verdict in zip(wanted, found, strict=True):
        alone = explore_case(case)
        assert (alone.found, alone.verdict, alone.states, alone.executions, alone.ledger.blocked, alone.outcomes) == (
            verdict.found, verdict.verdict, verdict.states, verdict.executions, verdict.ledger.blocked, verdict.outcomes,
        ), case  # fmt: skip
