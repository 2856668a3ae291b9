"""Reports that tests look at: of a known race, of a hostile scenario, of a long run with hundreds of actors."""

from collections import Counter
from functools import cache
from typing import Any

from actors.ops import READ_ONCE, WRITE_ONCE
from racevisor import Scenario, Setup, Thread, Variant, Vm
from racevisor.explore import Witness, explore_case, witness
from racevisor.guard import unguarded
from racevisor.reason import Wish, reason
from racevisor.report.beside import Beside, other_case
from racevisor.report.rounds import Rounds
from racevisor.report.whole import Cell as Verdict
from racevisor.report.whole import Claims, Named, Report, describe, judge, tell
from racevisor.scenario import Case, Source, load
from racevisor.strategies.random_walk import RandomWalk

#: what must stay text wherever it comes from
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&\u2028<!--"


def report_of(case: Case, found: Witness, *, shrunk: bool = True, other: Case | None = None) -> Report:
    """A report as the command makes it, without a file."""
    report = Report(title=str(case))
    describe(report, case)
    tell(report, case, found.schedule, live=False, told=reason(case, found, Wish(shrunk, 5.0)), other=other)
    return report


@cache
def lost_init() -> Report:
    """init_sipi as it was before the patch, under tso; its fatal steps are known."""
    scenario, source = load("init_sipi")
    case = Case(scenario, source, "before", "plain", "tso")
    verdict = explore_case(case)
    assert verdict.witness is not None
    fix = other_case(case, None)
    report = report_of(case, verdict.witness, other=fix)
    judge(report, case, 5.0, fix)
    return report


def walked(name: str, vcpus: int, setup: str, memory: str = "tso", *, steps: int = 20_000) -> tuple[Case, Witness]:
    """One random walk, which is as long as its machine is large."""
    scenario, source = load(name)
    case = Case(scenario, source, "before", setup, memory, vcpus)
    world = case.world(max_steps=steps)
    world.judge = unguarded
    try:
        return case, witness(world.run(RandomWalk(0, 1), 0))
    finally:
        world.close()


@cache
def many(vcpus: int = 540) -> Report:
    """More than 10,000 steps of more than a thousand actors."""
    return report_of(*walked("vcpu_requests", vcpus, "posted"), shrunk=False)


async def evil(me: Thread) -> None:
    me.note(HOSTILE)
    await WRITE_ONCE(me.vm.by_name[HOSTILE].victim, HOSTILE)


async def eyes(me: Thread) -> None:
    await READ_ONCE(me.vm.by_name[HOSTILE].victim)


class Hostile(Scenario):
    __doc__ = HOSTILE
    name = HOSTILE
    patch = HOSTILE
    variants = {HOSTILE: Variant(HOSTILE, claims={"*": "Sometimes"})}
    setups = {HOSTILE: Setup(HOSTILE)}

    def build(self, vm: Vm, setup: str) -> None:
        one: Any = Thread(vm, HOSTILE, evil)
        one.victim = one.cell(HOSTILE, "")
        Thread(vm, f"other{HOSTILE}", eyes)

    def exists(self, vm: Vm) -> str:
        return HOSTILE

    def outcome(self, vm: Vm) -> str:
        return HOSTILE


def hostile() -> Report:
    """Every text that a stranger can choose is chosen to break out."""
    case = Case(Hostile(), Source(HOSTILE, HOSTILE), HOSTILE, HOSTILE, "tso")
    verdict = explore_case(case)
    assert verdict.witness is not None
    report = report_of(case, verdict.witness)
    report.shrunk = report.search = HOSTILE
    report.beside = Beside(HOSTILE, HOSTILE, False, HOSTILE, HOSTILE, HOSTILE)
    report.why, report.more = [HOSTILE], [HOSTILE] * 9
    report.facts = [(HOSTILE, HOSTILE)]
    report.commands = [(HOSTILE, HOSTILE)]
    report.claims = [Claims(HOSTILE, HOSTILE, (Verdict(HOSTILE, HOSTILE, HOSTILE, False, True),))]
    report.ledgers = [(HOSTILE, HOSTILE)]
    report.rounds = [
        Rounds(HOSTILE, rounds=1, bad=1, runs={HOSTILE}, outcomes=Counter([HOSTILE]), bad_outcomes=Counter([HOSTILE]))
    ]
    report.traces = [Named(HOSTILE, 1, True, HOSTILE)]
    return report
