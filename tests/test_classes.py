"""The name of a Mazurkiewicz trace, held against the slow definition, and the certificate of a set of traces."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, Make, trace_class, world

from actors.vm import Vm
from racevisor.classes import Certificate, TraceKeys, trace_key
from racevisor.dependence import HappensBefore
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.step import Step
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World


class Stop(Monitor):
    """Ends an execution at the third step on what it watches."""

    check = "stop"

    def on_step(self, _step: Step) -> Violation | None:
        seen = self.ghost["seen"] = self.ghost.get("seen", 0) + 1
        return Violation(self.check, "three steps") if seen == 3 else None


def watching(vm: Vm) -> list[Monitor]:
    memory: Any = vm.memory
    return [Stop([memory.x, memory.y])]


def pairs(of: World) -> list[tuple[frozenset[Any], int]]:
    """(slow class, key) of every interleaving, however it ended."""
    strategy = BruteForce()
    found = []
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        found.append((trace_class(of), trace_key(of)))
        again = strategy.end(execution)
        run += 1
    of.close()
    return found


@settings(max_examples=150)
@given(PROGRAMS, st.sampled_from(MODELS), st.sampled_from([lambda vm: [], watching]))
def test_two_interleavings_have_one_key_exactly_where_they_are_one_trace(program: str, memory: str, monitors: Make) -> None:
    """A key that is too fine counts a trace twice; one that is too coarse hides a trace, which is worse."""
    found = pairs(world(program, memory, monitors))
    assert len({slow for slow, _ in found}) == len({key for _, key in found}) == len(set(found))


def test_an_execution_that_a_violation_ended_has_a_key() -> None:
    """What was taken until then is a trace like any other: of two threads with two steps each, the six orders of the first three.

    The monitor sees every order, so none of them are one trace.
    """
    found = pairs(world("x=1 y=1 | x=2 y=2", monitors=watching))
    assert len(found) == len({key for _, key in found}) == 6


@settings(max_examples=100)
@given(PROGRAMS, st.sampled_from(MODELS), st.data())
def test_a_key_grown_step_by_step_and_cut_is_the_key_made_at_once(program: str, memory: str, data: st.DataObject) -> None:
    """A search keeps what two executions have in common, and must name the second as if it had started with it."""
    of = world(program, memory)
    order = HappensBefore(of)
    keys = TraceKeys(order)
    for seed in range(4):
        # the same World takes other steps, so the common prefix is found as a search would know it
        before = [step.channel for step in of.steps]
        of.run(RandomWalk(seed, 1))
        common = 0
        while common < min(len(before), len(of.steps)) and before[common] == of.steps[common].channel:
            common += 1
        common = data.draw(st.integers(0, common))
        order.cut(common)
        keys.cut(common)
        for step in of.steps[common:]:
            order.extend(of.channels[step.channel], step)
            keys.extend(step)
        assert len(keys) == len(of.steps)
        assert keys.key() == trace_key(of)
    of.close()


def test_the_key_of_a_known_execution_is_this_number() -> None:
    """It may be written down and compared on another machine, so it depends on no process: no id, no hash seed, no set order."""
    of = world("x=1 r0=y | y=1 r1=x", "tso")
    of.run(RandomWalk(1, 1))
    assert f"{trace_key(of):032x}" == "08510c1a5b55bdb4396e59bfec059b50"
    of.close()


def test_values_count_where_the_order_alone_says_nothing() -> None:
    """Keys of two programs are not to be mixed up just because their steps have the same shape."""
    keys = set()
    for program in ("x=1", "x=2", "y=1", "x:=1", "r0=x", "x=1 | mb", "mb | x=1"):
        of = world(program)
        of.run(RandomWalk(0, 1))
        keys.add(trace_key(of))
        of.close()
    assert len(keys) == 7


def test_a_certificate_forgets_the_order_and_the_workers_and_nothing_else() -> None:
    """Workers finish in any order; whether they met the same traces, each once, must be seen from the numbers alone."""
    keys = [key for _, key in dict(pairs(world("x=1 r0=y | y=1 r1=x", "tso"))).items()]
    whole = Certificate.of(keys)
    first, second = Certificate.of(keys[:2]), Certificate()
    for key in reversed(keys[2:]):
        second = second.add(key)
    assert first.merge(second) == second.merge(first) == whole
    assert str(whole).startswith(f"{len(keys)}:")
    missing, twice = Certificate.of(keys[1:]), whole.add(keys[0])
    swapped = missing.add(keys[1])  # as many keys, but one missing and one twice
    assert len({whole, missing, twice, swapped, whole.add(keys[0]).add(keys[0])}) == 5


def test_a_certificate_sees_which_halves_of_independent_parts_go_together() -> None:
    """Two parts with two traces each: {(a, b), (c, d)} and {(a, d), (c, b)} consist of the same steps and are not the same."""
    found = dict(pairs(world("x=1 | r0=x | y=1 | r1=y")))
    assert len(found) == 4
    by_end = {(("P1", 1) in dict(slow)[("P0", 1)], ("P3", 1) in dict(slow)[("P2", 1)]): key for slow, key in found.items()}
    straight = Certificate.of([by_end[False, False], by_end[True, True]])
    crossed = Certificate.of([by_end[False, True], by_end[True, False]])
    assert straight != crossed
