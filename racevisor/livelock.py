"""Busy loops: a thread that runs for ever while nothing else can move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from racevisor.channel import Channel
from racevisor.monitor import Violation
from racevisor.step import STORE_BUFFER, THREAD, Step
from racevisor.world import World


def alone(movable: list[Channel]) -> bool:
    """Can only one thread move, and the stores that it posted, without a choice that might lead elsewhere?"""
    thread = movable[0].thread
    return all(channel.thread is thread and channel.kind in (THREAD, STORE_BUFFER) for channel in movable)


def fair(loop: list[Step], movable: list[Channel]) -> bool:
    """Does a loop that is back in its state go on for ever, and not only for as long as it starves its own stores?"""
    waiting = {channel.name for channel in movable if channel.kind == STORE_BUFFER}
    return not waiting or waiting <= {step.channel for step in loop}


def livelock(channel: Channel) -> Violation:
    """The violation of the thread that is left alone."""
    name = channel.thread.actor.name
    return Violation("livelock", f"{name} never blocks and never ends, and nothing else can move: a busy loop")


def found_in(world: World, channels: Iterable[str]) -> Violation | None:
    """Does this schedule end in a busy loop that has come round once?  `world` has to be made with automata=True."""
    world.reset()
    since: dict[Any, int] = {}
    for name in channels:
        if not alone(world.movable):
            since.clear()
        else:
            since.setdefault(world.fingerprint(), len(world.steps))
        world.step(world.channels[name])
    if not world.movable or not alone(world.movable):
        return None
    begin = since.get(world.fingerprint())
    return livelock(world.movable[0]) if begin is not None and fair(world.steps[begin:], world.movable) else None
