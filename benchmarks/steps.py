"""What a step costs: against the bare loop over the same coroutines, and with many actors against few."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actors.guest import APIC_DM_INIT, APIC_DM_STARTUP
from actors.ops import READ_ONCE, WRITE_ONCE, set_bit, test_and_clear_bit
from actors.thread import Thread
from actors.vm import Vm
from benchmarks.measure import against, in_turn, per_step, say
from racevisor.step import CHOICE, THREAD
from racevisor.strategies.pct import Pct
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World

STRATEGIES: dict[str, Callable[[int], Any]] = {
    "random walk": lambda seed: RandomWalk(seed, 1),
    "PCT": lambda seed: Pct(seed, 1, 3, steps=20_000),
}


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


def ring(actors: int, steps: int = 60_000) -> World:
    """Actors that all can move all the time; each shares a cell with its neighbour."""
    vm = Vm()
    memory = vm.guest_memory(**{f"c{i}": 0 for i in range(actors)})

    def body(i: int) -> Callable[[Any], Any]:
        mine, next_one = getattr(memory, f"c{i}"), getattr(memory, f"c{(i + 1) % actors}")

        async def run(_me: Any) -> None:
            for _ in range(steps // actors // 4):
                value = await READ_ONCE(mine)
                await WRITE_ONCE(next_one, value + 1)
                await set_bit(3, mine)
                await test_and_clear_bit(3, next_one)

        return run

    for i in range(actors):
        Thread(vm, f"P{i}", body(i))
    return World(vm, "sc", max_steps=1_000_000)


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


def schedule_of(world: World) -> list[tuple[Any, Any]]:
    steps = world.run(RandomWalk(0, 1)).steps
    return [(world.channels[s.channel].thread, s.result) for s in steps if s.kind in (THREAD, CHOICE)]


def walk(world: World, strategy: Any) -> int:
    """One execution with its trace recorded."""
    execution = world.run(strategy)
    strategy.end(execution)
    return len(execution.steps)


def main() -> None:
    """Print the figures."""
    two = machine(2)
    plan = schedule_of(two)
    for name, make in STRATEGIES.items():
        ratio, step, bare = in_turn(
            lambda i, make=make: per_step(lambda: walk(two, make(i))), lambda _: per_step(lambda: bare_loop(two, plan))
        )
        say(f"{name}, with its trace: {1 / step:,.0f} steps/s; the bare loop over the same coroutines: {1 / bare:,.0f} steps/s")
        say(f"  a step costs {ratio:.1f} times the bare loop's {against(5, ratio)}")
    few, many = ring(2), ring(512)
    for name, make in STRATEGIES.items():
        ratio, fast, slow = in_turn(
            lambda i, make=make: 1 / per_step(lambda: walk(many, make(i))),
            lambda i, make=make: 1 / per_step(lambda: walk(few, make(i))),
        )
        say(f"{name}, 512 actors that can all move: {fast:,.0f} steps/s; 2 actors: {slow:,.0f} steps/s")
        say(f"  {ratio:.2f} of the speed (at least: 0.7{'' if ratio >= 0.7 else ', missed'})")
    crowd = machine(256)
    ratio, slow, _ = in_turn(
        lambda i: per_step(lambda: walk(crowd, RandomWalk(i, 1))), lambda i: per_step(lambda: walk(two, RandomWalk(i, 1)))
    )
    say(f"random walk, 256 vCPUs of which 254 idle: {1 / slow:,.0f} steps/s; a step costs {ratio:.2f} times that of 2 vCPUs")
    for world in (two, few, many, crowd):
        world.close()
