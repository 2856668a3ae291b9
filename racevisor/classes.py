"""A name for the Mazurkiewicz trace of an execution, the same in every process, and a certificate for a set of them.

Two executions are one trace iff one becomes the other by swapping neighbouring independent steps (A. Mazurkiewicz: Trace
Theory, 1987; what is independent says racevisor/dependence.py).  A trace is therefore the set of its steps, each with the steps
that happen before it.  The name is made like a Merkle tree: a step's hash covers its channel, its number in that channel, its
words, and the hashes of the latest steps that happen before it, which cover theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from racevisor.dependence import HappensBefore
from racevisor.step import Step
from racevisor.world import World

_BYTES = 16
_ALL = (1 << 8 * _BYTES) - 1


class TraceKeys:
    """The keys of executions that share prefixes: it grows and shrinks in step with a HappensBefore, which its user extends.

    Call `extend` for a step after `order.extend` took it, and `cut` with the same length as `order.cut`.
    """

    def __init__(self, order: HappensBefore) -> None:
        self.order = order
        self._steps: list[bytes] = []  # per step: its hash
        self._sums: list[int] = [0]  # per length: the sum of the hashes so far, in which their order is lost
        self._channels: list[str] = []
        self._count: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def extend(self, step: Step) -> None:
        """Add the next step, the one that `order` has just taken or an earlier one that is not here yet."""
        steps = self._steps
        name = step.channel
        number = self._count[name] = self._count.get(name, 0) + 1
        past = self.order.past[len(steps)]
        full = self.order.full
        latest = []
        while past:
            n = past.bit_length() - 1
            latest.append(steps[n])
            past &= ~full[n]
        latest.sort()
        # repr keeps the words apart whatever characters a name holds
        digest = blake2b(repr((name, number, step.label)).encode(), digest_size=_BYTES)
        for earlier in latest:
            digest.update(earlier)
        steps.append(digest.digest())
        self._sums.append(self._sums[-1] + int.from_bytes(steps[-1], "big") & _ALL)
        self._channels.append(name)

    def cut(self, length: int) -> None:
        """Forget the steps from number `length` on."""
        for name in self._channels[length:]:
            self._count[name] -= 1
        del self._channels[length:], self._steps[length:], self._sums[length + 1 :]

    def key(self) -> int:
        """128 bits for the present execution: equal iff it is the same trace, up to a collision of blake2b.

        The sum is hashed once more.  Otherwise the keys of {(a, b), (c, d)} and {(a, d), (c, b)}, where a and c know nothing of
        b and d, would have the same sum, and so the same certificate.
        """
        text = f"{len(self._steps)} {self._sums[-1]:x}"
        return int.from_bytes(blake2b(text.encode(), digest_size=_BYTES).digest(), "big")


def trace_key(world: World, steps: list[Step] | None = None) -> int:
    """The key of one execution of `world`: of `steps`, or of the present one."""
    order = HappensBefore(world)
    keys = TraceKeys(order)
    for step in world.steps if steps is None else steps:
        order.extend(world.channels[step.channel], step)
        keys.extend(step)
    return keys.key()


@dataclass(frozen=True)
class Certificate:
    """Says which traces a search met, in 128 bits, whatever their order and however they were shared out among workers.

    `count` is how many keys went in, `total` their sum modulo 2**128.  Two searches that met the same traces equally often have
    equal certificates.  A trace that was met once more changes both, which would not be so if the keys were combined by xor.
    """

    count: int = 0
    total: int = 0

    @classmethod
    def of(cls, keys: set[int] | frozenset[int] | list[int]) -> Certificate:
        """The certificate of these keys; of a list, repeated ones count as often as they stand there."""
        return cls(len(keys), sum(keys) & _ALL)

    def add(self, key: int) -> Certificate:
        """With one more trace."""
        return Certificate(self.count + 1, self.total + key & _ALL)

    def merge(self, other: Certificate) -> Certificate:
        """What two workers met together; a trace that both met is in it twice."""
        return Certificate(self.count + other.count, self.total + other.total & _ALL)

    def __str__(self) -> str:
        return f"{self.count}:{self.total:032x}"

    def plain(self) -> list[Any]:
        """As plain data: msgpack has no number of 128 bits."""
        return [self.count, self.total.to_bytes(_BYTES, "big")]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Certificate:
        """From plain data."""
        return cls(plain[0], int.from_bytes(plain[1], "big"))
