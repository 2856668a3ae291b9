"""Brute force: every interleaving, depth first.  What the reduced searches are compared with, on small programs."""

from __future__ import annotations

from racevisor.world import Channel, Execution, World


class BruteForce:
    """Exhaustive, and exponential; `executions` counts the interleavings."""

    def __init__(self) -> None:
        self.executions = 0
        self.bounded = False
        self.exhausted = False
        self.path: list[list[Channel]] = []  # per step: what is still to be moved there, the present one last
        self.known: list[int] = []  # per step: how many heads there were to move

    def begin(self, _world: World, _run: int) -> None:
        """Start with the path whose last choice `end` has changed."""
        self.depth = 0

    def pick(self, movable: list[Channel]) -> Channel:
        """The known path first, then whatever can move."""
        if self.depth == len(self.path):
            self.path.append(movable[:])
            self.known.append(len(movable))
        self.depth += 1
        return self.path[self.depth - 1][-1]

    def end(self, execution: Execution) -> bool:
        """Step back to the deepest state where something has not been moved yet."""
        self.executions += 1
        self.bounded = self.bounded or execution.status == "bounded"
        while self.path:
            self.path[-1].pop()
            if self.path[-1]:
                return True
            self.path.pop()
            self.known.pop()
        self.exhausted = not self.bounded
        return False

    def frontier(self) -> list[tuple[int, int]]:
        """Per branching state of the present path, from the root: (children finished, children)."""
        return [(known - len(left), known) for known, left in zip(self.known, self.path, strict=True) if known > 1]
