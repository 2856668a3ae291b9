"""Heads, sleep sets and wakeup trees as plain data: a channel by its name, a cell by its index, which are the same everywhere.

A channel other than a thread's own comes into being when it is first used, which may be in another process; so its description
(kind, thread, payload) travels with the first mention of its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic

from racevisor.dependence import NOTHING, Access
from racevisor.errors import NotDeterministic
from racevisor.step import CHOICE, STORE_BUFFER
from racevisor.strategies.optimal import Branch, H
from racevisor.world import Channel, World

_WRITES, _OWN = 1, 2

#: name -> [kind, thread, payload] of a channel that is not there from the beginning
Channels = dict[str, list[Any]]


class Codec(ABC, Generic[H]):
    """Plain data to heads and back; `head` and `name` say what a head is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.channels: Channels = {}
        self._cells = world.vm.cells
        self._threads = {thread.actor.name: thread for thread in world.threads}

    @abstractmethod
    def head(self, name: str) -> H:
        """What has this name."""

    @abstractmethod
    def name(self, head: H) -> str:
        """What it is called."""

    def thread(self, name: str) -> Any:
        """The thread that a channel belongs to."""
        known = self.channels.get(name)
        return self._threads[name if known is None else known[1]]

    def process(self, name: str) -> str:
        """The name of racevisor.dependence.process of the channel."""
        known = self.channels.get(name)
        return name if known is None or known[0] != CHOICE else str(known[1])

    def access(self, name: str, cell: int, flags: int) -> Access:
        """What the head of a channel will touch."""
        if cell < 0:
            return NOTHING
        return Access(self._cells[cell], bool(flags & _WRITES), self.thread(name) if flags & _OWN else None)

    def pack(self, head: H, access: Access) -> list[Any]:
        """[name, cell, flags]."""
        cell, writes, own = access
        flags = (_WRITES if writes else 0) | (_OWN if own is not None else 0)
        return [self.name(head), -1 if cell is None else cell.index, flags]

    def pack_all(self, heads: Iterable[tuple[H, Access]]) -> list[Any]:
        """A sleep set, in its order."""
        return [self.pack(head, access) for head, access in heads]

    def unpack_all(self, plain: list[Any]) -> dict[H, Access]:
        """The sleep set again."""
        return {self.head(name): self.access(name, cell, flags) for name, cell, flags in plain}

    def pack_tree(self, tree: Sequence[Branch[H]]) -> list[Any]:
        """A wakeup tree in preorder, each branch with its depth: a way may be longer than anybody wants to nest lists."""
        plain = []
        stack = [(0, branch) for branch in reversed(tree)]
        while stack:
            depth, branch = stack.pop()
            plain.append([depth, *self.pack(branch.channel, branch.access)])
            stack += [(depth + 1, below) for below in reversed(branch.tree)]
        return plain

    def unpack_tree(self, plain: list[Any]) -> list[Branch[H]]:
        """The wakeup tree again."""
        levels: list[list[Branch[H]]] = [[]]
        for depth, name, cell, flags in plain:
            branch = Branch(self.head(name), self.access(name, cell, flags))
            levels[depth].append(branch)
            del levels[depth + 1 :]
            levels.append(branch.tree)
        return levels[0]


class Names(Codec[str]):
    """Where there is no execution: a head is a name."""

    def head(self, name: str) -> str:
        return name

    def name(self, head: str) -> str:
        return head


class Heads(Codec[Channel]):
    """Where there is one: a head is a channel of its World, made if it is not there yet."""

    def head(self, name: str) -> Channel:
        channel = self.world.channels.get(name)
        if channel is not None:
            return channel
        if name not in self.channels:
            raise NotDeterministic(f"a piece of the search tells of channel {name}, which nobody has made")
        kind, thread, payload = self.channels[name]
        if kind == STORE_BUFFER and payload is not None:
            payload = self._cells[payload]
        return self.world._channel(name, kind, self._threads[thread], payload)

    def name(self, head: Channel) -> str:
        return head.name

    def learned(self, known: Channels) -> Channels:
        """The channels that came into being, but for those that are known."""
        new: Channels = {}
        for name, channel in self.world.channels.items():
            if name not in known and name not in self._threads:
                payload = channel.payload
                if channel.kind == STORE_BUFFER and payload is not None:
                    payload = payload.index
                new[name] = [channel.kind, channel.thread.actor.name, payload]
        return new
