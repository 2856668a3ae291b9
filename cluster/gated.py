"""A trace, played on real actors in exactly its order: the driver grants one step after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.conductor import Conductor, Finished
from cluster.live import LOOK_UP, LiveRun
from cluster.messages import GRANT
from cluster.parity import Parity
from cluster.words import words
from racevisor import step
from racevisor.channel import Channel
from racevisor.errors import ClusterError, NotDeterministic
from racevisor.world import Execution, World

#: How long one step may take, in seconds: a grant, an access, an answer.
PATIENCE = 20.0


def play(run: LiveRun, picks: Sequence[tuple[str, str]], progress: Callable[[int], None] = lambda n: None) -> Execution:
    """Take the steps of `picks` on the hosts of a gated run, and in the World beside them.

    Returns what the World says of the execution that the hosts have shown.  Raises NotDeterministic where a step cannot be taken
    there, or is not what was recorded, and ClusterError if a host is lost.
    """
    assert run.world is not None and run.parity is not None and run.hosts is not None and run.hosts.conductor is not None
    world, parity, conductor = run.world, run.parity, run.hosts.conductor
    numbers = {name: i for i, name in enumerate(run.names)}
    world.reset()
    conductor.begin(0, 0)
    for n, (name, label) in enumerate(picks):
        channel = world.channels.get(name)
        if channel is None or channel.at < 0:
            movable = ", ".join(sorted(c.name for c in world.movable)) or "nothing"
            raise NotDeterministic(f"step {n} wants {name}:  {label}\n  but in the World only {movable} can move")
        kind, thread, where = channel.kind, numbers[channel.thread.actor.name], _where(channel, numbers)
        host = run.hosts.plan.place[where if kind == step.IPI else thread]
        conductor.moved.clear()
        conductor.say(host, 0, 0, (GRANT, kind, thread, where))
        taken = world.step(channel)
        if taken.label != label:
            raise NotDeterministic(f"step {n} wants {name}:  {label}\n  but what happens is  {taken.label}")
        _await(run, conductor, n, name, label)
        _, record, why = conductor.moved[0]
        if not record:
            raise NotDeterministic(f"step {n} wants {name}:  {label}\n  but on Ray it cannot be taken: {why}")
        if not parity.equal(taken, record):
            seen = words(world.vm, run.case.memory, record)
            raise NotDeterministic(f"step {n} wants {name}:  {label}\n  but on Ray it was {seen['channel']}: {seen['label']}")
        progress(n + 1)
    return _end(run, conductor, world, parity)


def _where(channel: Channel, numbers: dict[str, int]) -> int:
    """The third field of a grant."""
    if channel.kind == step.IPI:
        return numbers[channel.payload]
    if channel.kind == step.STORE_BUFFER:
        return channel.payload.index if channel.payload is not None else -1
    return int(channel.payload) if channel.kind == step.CHOICE else -1


def _await(run: LiveRun, conductor: Conductor, n: int, name: str, label: str) -> None:
    """Until a host says what became of the grant."""
    deadline = time.perf_counter() + PATIENCE
    while not conductor.moved:
        _listen(run, conductor)
        if time.perf_counter() > deadline:
            raise NotDeterministic(f"step {n} wants {name}:  {label}\n  but on Ray nothing has moved for {PATIENCE:g} s")


def _listen(run: LiveRun, conductor: Conductor) -> list[Finished]:
    hosts = run.hosts
    assert hosts is not None and hosts.wire is not None
    done = [finished for data in hosts.wire.receive(LOOK_UP) for finished in conductor.receive(data)]
    lost = hosts.lost()
    if lost is not None:
        host, why = lost
        raise ClusterError(f"host {hosts.names[host]} was lost: {why}\n  play the trace again")
    return done


def _end(run: LiveRun, conductor: Conductor, world: World, parity: Parity) -> Execution:
    """Compare what the hosts hold with the World, and judge it."""
    conductor.collect(0, 0)
    done: list[Finished] = []
    while not done:
        done = _listen(run, conductor)
    parity.compare(f"{run.case} on Ray", done[0].reports)
    violations = list(world.violations)
    status = "violated" if violations else "pruned" if world.movable else "terminal"
    outcome = None
    if not world.movable:
        violations += run.case.check(world.vm)
        outcome = run.case.scenario.outcome(world.vm)
    return Execution(0, world.steps, status, violations, outcome)
