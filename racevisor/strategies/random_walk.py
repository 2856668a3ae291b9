"""Random walk: every movable head is equally likely."""

from __future__ import annotations

from random import Random

from racevisor.world import Channel, Execution, World


class RandomWalk:
    """Weak on rare orders, and hard to beat for its price.  Run 17 of a seed is the same without runs 0 to 16.

    With `stay`, the channel that moved last moves again with that probability: executions with few context switches, which
    people can read.
    """

    def __init__(self, seed: int | str, runs: int, *, stay: float = 0.0) -> None:
        self.seed = seed
        self.runs = runs
        self.stay = stay

    def begin(self, _world: World, run: int) -> None:
        self.run = run
        self.random = Random(f"{self.seed}:{run}").random
        self.last: Channel | None = None

    def pick(self, movable: list[Channel]) -> Channel:
        last = self.last
        if self.stay and last is not None and last.at >= 0 and self.random() < self.stay:
            return last
        self.last = movable[int(self.random() * len(movable))]
        return self.last

    def end(self, _execution: Execution) -> bool:
        return self.run + 1 < self.runs
