"""Taking a machine apart that talks through a hub: it agrees with the search of the whole, or it is refused."""

import ast
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.vm import Vm
from racevisor.budget import Budget
from racevisor.commands.output import reenact
from racevisor.decompose import Decomposed, Decomposition
from racevisor.explore import cases, explore_case
from racevisor.hub import Refused
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.step import Step
from racevisor.strategies.replay import Replay
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World
from tests.hubs import hub_world

Ends = set[tuple[tuple[str, Any], ...]]


def whole(world: World) -> tuple[Ends, set[str]]:
    """End states and broken checks of the machine, by searching all of it."""
    search, ends, broken, run = StatefulSearch(), set(), set(), 0
    while True:
        execution = world.run(search, run)
        run += 1
        if execution.status == "terminal":
            ends.add(tuple(execution.outcome.items()))
        broken |= {violation.check for violation in execution.violations}
        if not search.end(execution):
            break
    world.close()
    assert search.exhausted
    return ends, broken


def apart(program: list[str], memory: str = "sc", **judges: Any) -> Decomposed:
    return Decomposition(hub_world(program, memory, **judges)).run()


def names(found: Decomposed) -> list[str]:
    return [str(one.part) for one in found.parts]


def agrees(program: list[str], memory: str, **judges: Any) -> Decomposed:
    """Every part ends as it does in the whole machine, and no otherwise; and the same is found bad."""
    found = apart(program, memory, **judges)
    ends, broken = whole(hub_world(program, memory, **judges))
    assert bool(broken) == any(one.bad for one in found.found)
    completed = all(one.executions > one.bad for one in found.found)
    assert bool(ends) == completed or broken
    for one in found.found:
        mine = {tuple(ast.literal_eval(text).items()) for text in one.outcomes}
        keys = {key for end in mine for key, _ in end}
        theirs = {tuple(pair for pair in end if pair[0] in keys) for end in ends}
        assert theirs <= mine
        if not broken:
            assert theirs == mine
    for execution in (found.bad, found.good):
        if execution is not None:
            again = hub_world(program, memory, **judges)
            replay = Replay([(step.channel, step.label) for step in execution.steps])
            here = again.run(replay)
            replay.end(here)
            assert [v.check for v in here.violations] == [v.check for v in execution.violations]
            again.close()
    assert (found.bad is not None) == any(one.bad for one in found.found)
    return found


# ---- programs that can be taken apart ---------------------------------------------------------------------------------------

MESSAGE = ["store:a:1 wmb bit:b:0 cp store:c:1 wmb bit:d:0", "load:b load:a", "load:d load:c"]
DUEL = ["store:a:1 mb load:b cp store:c:1 mb load:d cp", "store:b:1 mb load:a", "store:d:1 mb load:c"]
LOOKS = ["xchg:a:1 if:b:store:a:2 load:h cp xchg:c:1 if:d:store:c:2 store:g:1 cp", "store:b:1 load:a", "xchg:d:1 load:c"]
IPIS = ["store:a:1 ipi:0 cp store:c:1 ipi:1 cp", "cli:0 load:a irq:0", "cli:1 irq:1 load:c"]
CHOICE = ["maybe:store:a:1 cp maybe:store:c:1 cp", "load:a load:b", "load:c load:c"]
COMES_BACK = ["store:a:1 cp store:c:1 cp xchg:a:2 cp xchg:c:2 cp load:g", "load:a xchg:a:3 load:a", "load:c load:c load:c"]


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("program", [MESSAGE, DUEL, LOOKS, IPIS, CHOICE, COMES_BACK], ids=lambda p: p[0])
def test_what_talks_through_a_hub_only_is_taken_apart_and_ends_as_the_whole_does(program: list[str], memory: str) -> None:
    found = agrees(program, memory)
    assert found.hub == "H"
    assert names(found) == ["T0", "T1"]


def test_the_hub_is_found_wherever_it_stands() -> None:
    """Nothing says which thread it is: here it is the second one."""
    program = ["load:a load:b", "store:b:1 store:a:1 cp store:c:1 store:d:1", "load:d load:c"]
    found = agrees(program, "pso")
    assert found.hub == "T0"
    assert names(found) == ["H", "T1"]


def test_threads_that_share_a_cell_are_one_part() -> None:
    """Also if one of them comes to that cell only after it has seen a rare value."""
    program = ["store:a:1 cp store:b:1 cp store:c:1", "load:a load:a", "load:b if:b:if:f:store:e:1", "load:c xchg:e:1 xchg:f:1"]
    assert names(agrees(program, "sc")) == ["T0", "T1 and T2"]


def test_a_cell_that_a_thread_is_seen_to_touch_late_corrects_the_graph() -> None:
    """No random execution goes there; the search of the part does, and the machine is parted anew."""
    rare = ":".join(["if:b:if:c"] * 4) + ":store:e:7"
    flips = " ".join(["xchg:b:1 xchg:b:0 xchg:c:1 xchg:c:0"] * 4)
    program = ["store:a:1 cp store:g:1 cp store:h:1", "load:g", f"load:h {flips}", rare, "load:e"]
    search = Decomposition(hub_world(program))
    attempts = []
    attempt = search._attempt
    search._attempt = lambda *around: attempts.append(1) or attempt(*around)  # type: ignore[func-returns-value, method-assign]
    found = search.run()
    assert len(attempts) > 1
    assert names(found) == ["T0", "T1 and T2 and T3"]
    assert names(agrees(program, "sc")) == names(found)


@pytest.mark.parametrize("memory", MODELS)
def test_a_check_is_judged_in_its_part_and_shown_on_the_whole_machine(memory: str) -> None:
    """A monitor breaks in one part, an end is bad in another; what is bad replays, and a good execution is put together."""

    class Both(Monitor):
        """The two cells never hold 1 together."""

        check = "both"

        def on_step(self, step: Step) -> Violation | None:
            return Violation("both", "both are 1", (step.n,)) if all(cell.value == 1 for cell in self.watches) else None

    def monitors(vm: Vm) -> list[Monitor]:
        return [Both([vm.memory.c, vm.memory.d])]  # type: ignore[union-attr]

    def check(vm: Vm) -> list[Violation]:
        targets = [actor for actor in vm.actors if actor.name in ("T0", "T1") and vm.in_question(actor)]
        return [Violation("late", f"{one.name} saw it") for one in targets if one.seen[-1:] == (1,)]  # type: ignore[attr-defined]

    found = agrees(["store:a:1 cp store:c:1 cp", "load:a", "xchg:d:1 xchg:d:0 load:b"], memory, monitors=monitors, check=check)
    assert not found.always
    assert [one.bad > 0 for one in found.parts] == [True, True]
    assert found.good is not None and found.good.status == "terminal"
    always = agrees(["store:a:1 cp store:c:1 cp", "xchg:b:1 load:b", "load:c load:d"], memory, check=check)
    assert always.always and always.good is None


# ---- programs that must be refused ------------------------------------------------------------------------------------------

REFUSED = {
    "what it saw in one part decides what it does in the other": (
        ["keep:b cp kept:store:c:1 cp", "store:b:1 load:a", "load:c load:c"], "sc", "different states"),
    "the same with no checkpoint between": (["if:b:store:c:1 cp", "store:b:1", "load:c"], "sc", "no checkpoint"),
    "it waits for a part": (["await:b:1 cp store:c:1", "load:a store:b:1", "load:c"], "sc", "only if another thread has moved"),
    "it may wait for ever in a part": (["await:b:0 cp store:c:1", "store:b:1", "load:c"], "sc", "wait for ever"),
    "it spins in a part": (["spin:b cp store:c:1", "load:a store:b:1", "load:c"], "sc", "for ever|only if another|end"),
    "it writes its own cell as a part has it": (
        ["if:b:store:h:1 cp if:h:store:c:1 cp", "store:b:1", "load:c load:g"], "sc", "stores"),
    "what it saw decides over a barrier": (
        ["store:c:1 if:b:mb cp load:d cp", "store:b:1", "store:d:1 mb load:c"], "tso", "barriers"),
    "what it saw decides over a write barrier": (
        ["store:c:1 if:b:wmb cp store:d:1 cp", "store:b:1", "load:d load:c"], "pso", "barriers"),
    "a thread may run for ever, though its head slept when it was left alone": (
        ["mb cp if:d:spin:c release:c:1 cp store:d:2 cp kept:xchg:b:1", "load:a store:b:1", "store:d:1 irq:1 if:c:store:c:2"],
        "sc", "run for ever"),
    "its own CPU is interrupted": (["cli:0 ipi:0 cp store:a:1 cp irq:0 cp store:c:1", "load:a", "load:c"], "sc", "IPI"),
    "there is one part": (["store:a:1", "load:a load:b", "store:b:1 load:a"], "sc", "two parts"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_hub_whose_way_depends_on_a_part_is_refused(name: str) -> None:
    """And the words say where."""
    program, memory, words = REFUSED[name]
    with pytest.raises(Refused, match=words):
        apart(program, memory)


def test_a_choice_of_the_hub_may_be_good_for_one_part_and_bad_for_the_other() -> None:
    """Each part ends well or badly, but never both well: that cannot be told from the parts."""
    hub = "store:c:2 maybe:store:h:1 cp if:h:store:a:2 cp if:h:store:c:1 cp store:b:1 cp store:d:1 cp"
    program = [hub, "await:b:1 load:a", "await:d:1 load:c"]
    agrees(program, "sc")
    _, broken = whole(hub_world(program, check=saw_two))
    assert broken == {"two"}
    with pytest.raises(Refused, match="goes different ways"):
        apart(program, check=saw_two)


def test_what_makes_no_difference_to_a_memory_model_is_no_reason_to_refuse() -> None:
    """A barrier orders nothing where every store is visible at once, and a write barrier nothing under tso."""
    agrees(["store:c:1 if:b:mb cp load:d cp", "store:b:1", "store:d:1 mb load:c"], "sc")
    agrees(["store:c:1 if:b:wmb cp store:d:1 cp", "store:b:1", "load:d load:c"], "tso")


def test_a_check_that_looks_at_two_parts_at_once_is_found_out() -> None:
    """Cells and registers of another part are sealed while one is judged."""
    program = ["store:a:1 cp store:c:1", "load:a", "load:c"]

    def cells(vm: Vm) -> list[Violation]:
        memory = vm.memory
        assert memory is not None
        return [Violation("x", "x")] if memory.a.value and memory.c.value else []  # type: ignore[attr-defined]

    def registers(vm: Vm) -> list[Violation]:
        return [Violation("x", "x")] if vm.by_name["T0"].seen == vm.by_name["T1"].seen else []  # type: ignore[attr-defined]

    for check, words in ((cells, r"looks at memory\.[ac]"), (registers, r"looks at T[01]\.seen")):
        with pytest.raises(Refused, match=words):
            apart(program, check=check)


# ---- any program ------------------------------------------------------------------------------------------------------------

OWN, OTHER = 12, 1  # how often a thread touches its own cells, and how often any


def _words(cells: str, hub: bool) -> st.SearchStrategy[str]:
    cpu = ["ab", "cd", "abcdh"].index(cells) % 2
    cell = st.sampled_from(list(cells) * OWN + list("abcdefgh") * OTHER)
    plain = st.builds(lambda name, where: name.format(where), st.sampled_from(
        ["load:{}", "store:{}:1", "store:{}:2", "xchg:{}:1", "bit:{}:1", "release:{}:1", "mb", "wmb"]), cell)  # fmt: skip
    rare = st.builds(lambda where: f"await:{where}:1", cell)
    tests = st.builds(lambda where, what: f"if:{where}:{what}", cell, plain)
    if not hub:
        return st.one_of(plain, plain, tests, rare, st.sampled_from([f"cli:{cpu}", f"irq:{cpu}"]))
    kept = st.one_of(st.builds(lambda where: f"keep:{where}", cell), st.builds(lambda what: f"kept:{what}", plain))
    return st.one_of(plain, plain, tests, tests, kept, rare, st.builds("maybe:{}".format, plain), st.just(f"ipi:{cpu}"))


def _line(pieces: list[list[str]]) -> str:
    return " cp ".join(" ".join(piece) for piece in pieces)


HUB = st.builds(
    lambda first, second, third: _line([first, second, third]),
    st.lists(_words("ab", True), min_size=1, max_size=3),
    st.lists(_words("cd", True), min_size=1, max_size=3),
    st.lists(_words("abcdh", True), max_size=2),
)
PROGRAMS = st.builds(
    lambda hub, one, two: [hub, " ".join(one), " ".join(two)],
    HUB,
    st.lists(_words("ab", False), min_size=1, max_size=3),
    st.lists(_words("cd", False), min_size=1, max_size=3),
)


class ThirdWrite(Monitor):
    """Counts the writes of some cells."""

    def on_step(self, step: Step) -> Violation | None:
        self.ghost["writes"] += step.writes
        return Violation("third", "a third write", (step.n,)) if self.ghost["writes"] == 3 else None


def saw_two(vm: Vm) -> list[Violation]:
    seen = [actor for actor in vm.actors if actor.name.startswith("T") and vm.in_question(actor)]
    return [Violation("two", f"{actor.name} saw 2") for actor in seen if actor.seen[-1:] == (2,)]  # type: ignore[attr-defined]


LATE = ["release:a:1 cp store:h:1 if:e:ipi:0 await:h:0 cp wmb cp", "if:b:if:b:bit:b:1", "xchg:c:1 if:h:irq:1"]
RARE = ["xchg:h:1 cp store:d:1 cp await:b:1", "store:a:2", "if:d:bit:c:1 if:d:mb store:d:1", "mb load:e"]


@settings(max_examples=300)
@given(PROGRAMS, st.sampled_from(MODELS), st.sampled_from(["", "", "a", "ab c", "h", "ah"]), st.booleans())
@example(["keep:a store:h:1 cp kept:store:c:1", "store:a:1", "load:c load:c"], "sc", "", False)
@example(["store:a:1 cp bit:c:1 if:d:wmb cp store:b:1", "load:b load:a", "store:d:1"], "pso", "", False)
@example(LATE, "pso", "", False)
@example(RARE, "tso", "", False)
def test_any_program_is_refused_or_ends_as_the_whole_does(program: list[str], memory: str, watched: str, judged: bool) -> None:
    """Hubs that keep what they saw, that block, whose parts touch a common cell now and then: wrong is never an answer."""

    def monitors(vm: Vm) -> list[Monitor]:
        return [ThirdWrite([getattr(vm.memory, name) for name in group], writes=0) for group in watched.split()]

    try:
        agrees(program, memory, monitors=monitors, check=saw_two if judged else None)
    except Refused:
        TALLY["refused"] += 1
    else:
        TALLY["agreed"] += 1


TALLY = {"refused": 0, "agreed": 0}


def test_neither_answer_is_rare() -> None:
    """Else the test above would say nothing; it runs before this one."""
    if sum(TALLY.values()) >= 100:
        assert min(TALLY.values()) > 60, TALLY


# ---- INIT and SIPI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setup", "memory"), [("plain", "sc"), ("init_only", "tso"), ("init_only", "pso")])
def test_each_target_of_a_boot_processor_has_the_states_that_one_alone_has(setup: str, memory: str) -> None:
    """The proof for four vCPUs is the one for two, three times; that a target but the first waits for its word adds some."""
    (two,) = cases("init_sipi", ["latch"], [setup], [memory])
    (four,) = cases("init_sipi", ["latch"], [setup], [memory], 4)
    alone, found = explore_case(two), explore_case(four)
    assert (found.found, found.verdict, found.vcpus) == ("Never", "exhausted", 4)
    assert 0 <= found.states - 3 * alone.states <= 3 * alone.states // 10
    assert "decomposed into 3 parts of 1 thread around vcpu0" in found.bound
    (end,) = (outcome.removeprefix("vcpu1") for outcome in alone.outcomes)
    assert set(found.outcomes) == {f"vcpu{n}{end}" for n in (1, 2, 3)}


@pytest.mark.parametrize("setup", ["plain", "init_only"])
def test_a_lost_init_is_found_apart_and_replays_on_the_whole_machine(setup: str) -> None:
    (case,) = cases("init_sipi", ["before"], [setup], ["tso"], 3)
    verdict = explore_case(case)
    assert (verdict.found, verdict.verdict) == ("Sometimes", "exhausted")
    for witness, bad in ((verdict.witness, True), (verdict.good, False)):
        assert witness is not None
        _, execution = reenact(case, witness.schedule)
        assert execution.bad is bad


def test_apart_and_whole_agree_where_the_whole_can_be_searched() -> None:
    """Three vCPUs, in a set-up that is small enough."""
    for variant in ("latch", "I-M10", "I-M11"):
        (case,) = cases("init_sipi", [variant], ["init_only"], ["sc"], 3)
        by_parts, by_all = explore_case(case), explore_case(case, decompose=False, to_the_end=True)
        assert by_parts.verdict == by_all.verdict == "exhausted"
        assert (by_parts.found, by_parts.confirmed) == (by_all.found, by_all.confirmed)


def test_nine_vcpus_are_exhausted() -> None:
    (case,) = cases("init_sipi", ["latch"], ["init_only"], ["pso"], 9)
    verdict = explore_case(case)
    assert (verdict.found, verdict.verdict) == ("Never", "exhausted")
    assert "8 parts" in verdict.bound


def test_a_machine_that_cannot_be_taken_apart_is_searched_whole_and_told_why() -> None:
    (case,) = cases("init_sipi", ["latch"], ["init_only"], ["sc"])
    verdict = explore_case(case, decompose=True)
    assert verdict.bound.startswith("every reachable state; not decomposed: no thread is the hub of at least two parts")
    assert verdict.states == explore_case(case).states
    assert "decomposed" not in explore_case(case).bound


class Clock:
    """Ticks at every look: deterministic seconds."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_a_budget_that_is_spent_on_the_parts_is_not_spent_again_on_the_whole() -> None:
    """`--budget 60s` must not take two minutes; and nobody may take "nothing found" for a search of anything."""
    (case,) = cases("init_sipi", ["latch"], ["plain"], ["tso"], 5)
    clock = Clock(10.0)
    verdict = explore_case(case, budget=60.0, clock=clock)
    assert (verdict.verdict, verdict.finding, verdict.executions) == ("budget spent", "not found", 0)
    assert not verdict.confirmed
    assert "all of it on taking the machine apart" in verdict.bound and "--no-decompose" in verdict.bound
    assert clock.now <= 60.0 + 2 * clock.tick


def test_the_whole_is_searched_with_what_taking_it_apart_has_left() -> None:
    """A machine without a hub is refused at once; the ledger has the time of both, and the budget that was given."""
    (case,) = cases("init_sipi", ["latch"], ["init_only"], ["sc"])
    seen: list[float] = []

    class Seen(Budget):
        def __init__(self, seconds: float | None = None, *rest: Any) -> None:
            seen.append(seconds or 0.0)
            super().__init__(seconds, *rest)

    with patch("racevisor.explore.Budget", Seen), patch("racevisor.apart.Budget", Seen):
        verdict = explore_case(case, budget=60.0, clock=Clock(2.0), decompose=True)
    assert seen == [60.0, 58.0]
    assert "not decomposed: no thread is the hub" in verdict.bound and "which took 2 s of the budget" in verdict.bound
    assert verdict.ledger.bounds.seconds == 60.0
    assert verdict.ledger.seconds > 2.0
