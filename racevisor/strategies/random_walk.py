"""Random walk: every movable head is equally likely."""

from __future__ import annotations

from random import Random

from racevisor.world import Channel, Execution, World


class RandomWalk:
    """Weak on rare orders, and hard to beat for its price.  Run 17 of a seed is the same without runs 0 to 16."""

    def __init__(self, seed: int | str, runs: int) -> None:
        self.seed = seed
        self.runs = runs

    def begin(self, _world: World, run: int) -> None:
        self.run = run
        self.random = Random(f"{self.seed}:{run}").random

    def pick(self, movable: list[Channel]) -> Channel:
        return movable[int(self.random() * len(movable))]

    def end(self, _execution: Execution) -> bool:
        return self.run + 1 < self.runs
