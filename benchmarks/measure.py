"""What the benchmarks share.  A figure is a ratio of two things measured in turn, so that a slow or busy machine cancels out."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from actors.ops import Op
from actors.vm import Vm
from racevisor.world import World

ROUNDS = 7


def say(text: str) -> None:
    """One line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def against(bound: float, ratio: float) -> str:
    """The words for a ratio and its bound."""
    return f"(bound: {bound:g}{'' if ratio <= bound else ', exceeded'})"


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def per_step(work: Callable[[], int]) -> float:
    """CPU seconds per step of one call of `work`, which returns its steps."""
    begin = time.process_time()
    steps = work()
    return (time.process_time() - begin) / steps


def in_turn(one: Callable[[int], float], other: Callable[[int], float]) -> tuple[float, float, float]:
    """(median of the ratios pair by pair, median of each)."""
    pairs = [(one(i), other(i)) for i in range(ROUNDS)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


async def _sender(op: Op) -> None:
    while True:
        await op


def bare_send() -> float:
    """CPU seconds of resuming a coroutine that awaits an op again and again: no World, no strategy."""
    vm = Vm()
    memory: Any = vm.guest_memory(x=0)
    coroutine = _sender(memory.x.load)
    send = coroutine.send
    send(None)
    sends = 300_000
    begin = time.process_time()
    for _ in range(sends):
        send(None)
    spent = time.process_time() - begin
    coroutine.close()
    return spent / sends


def exhaust(world: World, strategy: Any) -> Any:
    """Run the strategy to its end; returns it."""
    run = 0
    while strategy.end(world.run(strategy, run)):
        run += 1
    world.close()
    return strategy
