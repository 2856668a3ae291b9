"""The verdict on a case whose machine was taken apart: see racevisor.decompose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from racevisor import choose
from racevisor.budget import Budget
from racevisor.choose import Wanted
from racevisor.decompose import Decomposition, Stopped
from racevisor.explore import LOOK, Verdict, witness
from racevisor.hub import Refused
from racevisor.ledger import BUDGET_SPENT, EXHAUSTED, Bounds, Ledger, Look
from racevisor.scenario import Always, Case, Never, Sometimes
from racevisor.twins import Recorder


@dataclass(frozen=True)
class NotApart:
    """Why this machine is not taken apart, and the seconds that finding it out took: the whole has to do with the others."""

    why: str
    seconds: float


def verdict_by_parts(case: Case, wanted: Wanted, clock: Callable[[], float], on_look: Look | None) -> Verdict | NotApart:
    """The verdict, from searching each part to the end; or why the whole has to be searched.

    If the budget ran out meanwhile, nothing is left to search the whole with: the verdict says that, and nothing else.
    """
    seconds = choose.seconds(wanted)
    budget = Budget(seconds, None, clock)
    world = case.world(max_steps=wanted.max_steps, automata=True, calls=Recorder)
    recorder = world.vm.calls
    assert isinstance(recorder, Recorder)

    def stop(executions: int) -> bool:
        if executions % LOOK:
            return False
        budget.look(executions)
        if on_look is not None:
            on_look(executions, 0, budget.elapsed, lambda: None)
        return budget.spent

    decomposition = Decomposition(world, should_stop=stop)
    try:
        whole = decomposition.run()
    except Stopped:
        return _out_of_budget(case, world.max_steps, budget)
    except Refused as reason:
        budget.look(decomposition.executions)
        return _out_of_budget(case, world.max_steps, budget) if budget.spent else NotApart(str(reason), budget.elapsed)
    budget.look(sum(one.executions for one in whole.found))
    outcomes: Counter[str] = Counter()
    for one in whole.found:
        outcomes.update(one.outcomes)
    # where all executions of one part are bad, all of the machine are, whatever the other parts do
    counted = [one for one in whole.found if not whole.always or one.executions == one.bad]
    bad = sum(one.bad for one in counted)
    ledger = Ledger(
        strategy="states",
        memory=case.memory,
        verdict=EXHAUSTED,
        reason=whole.words,
        bounds=Bounds(world.max_steps, None, seconds),
        executions=sum(one.executions for one in counted),
        bad=bad,
        cut=0,
        blocked=sum(one.blocked for one in whole.found),
        states=whole.states,
        classes=None,
        seconds=budget.elapsed,
    )
    return Verdict(
        scenario=case.scenario.name,
        variant=case.variant_name,
        setup=case.setup,
        memory=case.memory,
        claimed=case.claimed,
        found=Never if not bad else Always if whole.always else Sometimes,
        ledger=ledger,
        outcomes=dict(outcomes),
        witness=None if whole.bad is None else witness(whole.bad),
        good=None if whole.good is None else witness(whole.good),
        calls=frozenset(recorder.names),
        vcpus=case.vcpus,
    )


def _out_of_budget(case: Case, max_steps: int, budget: Budget) -> Verdict:
    """Nothing was found, because nothing was searched to its end."""
    ledger = Ledger(
        strategy="states",
        memory=case.memory,
        verdict=BUDGET_SPENT,
        reason=f"{budget.spent_words()}, all of it on taking the machine apart, which came to no end; the whole was not searched "
        "(--no-decompose does that, a longer --budget may make both possible)",
        bounds=Bounds(max_steps, None, budget.seconds),
        executions=0,
        bad=0,
        cut=0,
        blocked=0,
        states=0,
        classes=None,
        seconds=budget.elapsed,
        by_clock=True,
    )
    return Verdict(
        case.scenario.name, case.variant_name, case.setup, case.memory, case.claimed, Never, ledger, vcpus=case.vcpus
    )  # fmt: skip
