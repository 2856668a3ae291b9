"""Print the figures: each is a ratio of two things measured in turn, so that a slow or busy machine cancels out."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actors.guest import APIC_DM_INIT, APIC_DM_STARTUP
from actors.vm import Vm
from racevisor.explore import cases, explore_case
from racevisor.step import CHOICE, THREAD
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World

ROUNDS = 9


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def machine(vcpus: int) -> World:
    """INIT and SIPI from vCPU0 to vCPU1; the other vCPUs wait for an INIT that never comes."""
    vm = Vm()
    vm.add_vcpus(vcpus)

    async def sender(cpu: Any) -> None:
        for _ in range(300):
            await cpu.write_icr(1, APIC_DM_INIT)
            await cpu.write_icr(1, APIC_DM_STARTUP, 9)

    vm.vcpus[0].programs[0] = sender
    return World(vm, "tso", max_steps=1_000_000)


def seconds(work: Callable[[], int]) -> float:
    """Seconds per step of one call of `work`, which returns its steps."""
    begin = time.perf_counter()
    steps = work()
    return (time.perf_counter() - begin) / steps


def bare_loop(world: World, schedule: list[tuple[Any, Any]]) -> int:
    """The same coroutines, given the same results in the same order; no World, no strategy, no trace."""
    world.vm.reset()
    sends = {thread: thread.actor.run() for thread in world.threads}
    for coroutine in sends.values():
        coroutine.send(None)
    resume = [(sends[thread].send, result) for thread, result in schedule]
    for send, result in resume:
        with suppress(StopIteration):
            send(result)
    for coroutine in sends.values():
        coroutine.close()
    world.close()
    return len(resume)


def schedule_of(world: World, seed: int) -> list[tuple[Any, Any]]:
    steps = world.run(RandomWalk(seed, 1)).steps
    return [(world.channels[s.channel].thread, s.result) for s in steps if s.kind in (THREAD, CHOICE)]


def walk(world: World, seed: int) -> int:
    """One random walk with its trace recorded; steps that the idle vCPUs take to fall asleep count too."""
    return len(world.run(RandomWalk(seed, 1)).steps)


def median_ratio(slow: Callable[[int], float], fast: Callable[[int], float]) -> tuple[float, float, float]:
    """(median of the ratios pair by pair, median of each)."""
    pairs = [(slow(i), fast(i)) for i in range(ROUNDS)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def main() -> None:
    two, many = machine(2), machine(256)
    plan = schedule_of(two, 0)
    ratio, world, bare = median_ratio(lambda i: seconds(lambda: walk(two, i)), lambda _: seconds(lambda: bare_loop(two, plan)))
    say(f"World, random walk, trace: {1 / world:>11,.0f} steps/s")
    say(f"bare loop over coroutines: {1 / bare:>11,.0f} steps/s   the World costs {ratio:.1f} times the bare loop")
    ratio, crowd, _ = median_ratio(lambda i: seconds(lambda: walk(many, i)), lambda i: seconds(lambda: walk(two, i)))
    say(f"256 vCPUs, 254 of them idle: {1 / crowd:>9,.0f} steps/s   {ratio:.2f} times the cost per step of 2 vCPUs (bound: 1.5)")
    case = cases("init_sipi", ["latch"], ["two_rounds"], ["tso"])[0]
    verdict = explore_case(case)
    rate = verdict.states / verdict.seconds
    say(f"stateful search, {case}: {verdict.verdict}, {verdict.states:,} states, {rate:,.0f} states/s")
    case = cases("init_sipi", ["latch"], ["init_only"], ["tso"])[0]
    verdict = explore_case(case, strategy="dpor")
    done = verdict.executions + verdict.blocked
    say(f"source-DPOR, {case}: {verdict.verdict}, {verdict.executions:,} classes, {done / verdict.seconds:,.0f} executions/s")
    two.close()
    many.close()


if __name__ == "__main__":
    main()
