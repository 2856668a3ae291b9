"""vCPUs that do nothing but look at, and change, what their neighbours own: every access is a message and its answer.

A scenario for the benchmark `live` only.  Packed on an even number of hosts, each neighbour is on another host than oneself.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add, set_bit
from actors.thread import Thread
from racevisor import Scenario, Variant, Vm


class Neighbours(Scenario):
    """Each vCPU loads, stores, adds to and sets bits in the cells of the next one, and then ends."""

    variants = {"only": Variant("as it is")}
    vcpus = 2
    max_vcpus = 4096
    max_steps = 5_000

    def build(self, vm: Vm, setup: str) -> None:
        """A ring of `vm.size` threads, each with two cells."""
        threads = [Thread(vm, f"vcpu{i}", lambda me: me.work(me), seen=0) for i in range(vm.size)]
        cells = [(thread.cell("word"), thread.cell("count")) for thread in threads]
        for i, thread in enumerate(threads):
            thread.work = work(*cells[(i + 1) % vm.size])  # type: ignore[attr-defined]

    def outcome(self, vm: Vm) -> str:
        """The same in every round."""
        return f"{sum(getattr(actor, 'seen', 0) for actor in vm.actors)} turns"


def work(word: Any, count: Any) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """What a vCPU does with the cells of its neighbour."""

    async def body(me: Any) -> None:
        for turn in range(TURNS):
            await READ_ONCE(word)
            await atomic_fetch_add(1, count)
            await WRITE_ONCE(word, turn)
            await set_bit(7, count)
            me.seen = turn + 1

    return body


#: times round; a turn is 8 messages
TURNS = 10
