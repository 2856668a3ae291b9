"""The verdict on a case whose machine was taken apart: see racevisor.decompose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from racevisor import choose
from racevisor.budget import Budget
from racevisor.choose import Wanted
from racevisor.decompose import Decomposition
from racevisor.explore import LOOK, Recorder, Verdict, witness
from racevisor.hub import Refused
from racevisor.ledger import EXHAUSTED, Bounds, Ledger, Look
from racevisor.scenario import Always, Case, Never, Sometimes


def verdict_by_parts(case: Case, wanted: Wanted, clock: Callable[[], float], on_look: Look | None) -> Verdict | str:
    """The verdict, from searching each part to the end; or, in words, why this machine is not taken apart."""
    seconds = choose.AUTO_BUDGET if wanted.budget is None and wanted.strategy == "auto" else wanted.budget
    budget = Budget(seconds, None, clock)
    world = case.world(max_steps=wanted.max_steps, automata=True)
    recorder = world.vm.calls = Recorder(world.vm.calls)

    def stop(executions: int) -> bool:
        if executions % LOOK:
            return False
        budget.look(executions)
        if on_look is not None:
            on_look(executions, 0, budget.elapsed, lambda: None)
        return budget.spent

    try:
        whole = Decomposition(world, should_stop=stop).run()
    except Refused as reason:
        return str(reason)
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
