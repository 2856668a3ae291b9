"""Message passing: can a reader see the flag and miss the data that the flag announces?

P0 stores the data, then the flag.  P1 reads the flag, then the data.  x86 keeps stores in order, so tso never shows the race;
a machine that orders stores only per cell (pso) does, until smp_wmb() pairs with the reader's smp_rmb().
"""

from actors.ops import READ_ONCE, WRITE_ONCE, smp_rmb, smp_wmb
from racevisor import Scenario, Sometimes, Thread, Variant

NOTHING = -1


async def publish_plain(memory):
    await WRITE_ONCE(memory.data, 42)
    await WRITE_ONCE(memory.ready, 1)


async def publish_wmb(memory):
    await WRITE_ONCE(memory.data, 42)
    await smp_wmb()  # the data before the flag: pairs with smp_rmb() in the reader
    await WRITE_ONCE(memory.ready, 1)


async def writer(me):
    await me.vm.calls.publish(me.vm.memory)


async def reader(me):
    if await READ_ONCE(me.vm.memory.ready):
        await smp_rmb()
        me.seen = await READ_ONCE(me.vm.memory.data)


class MessagePassing(Scenario):
    """The flag must not overtake the data."""

    functions = {"publish": publish_plain}  # what variants may replace, reached as vm.calls.publish
    variants = {
        "plain": Variant("two plain stores", claims={"*": {"pso": Sometimes}}),
        "wmb": Variant("smp_wmb() between them", {"publish": publish_wmb}),
    }

    def build(self, vm, setup):
        vm.guest_memory(data=0, ready=0)
        Thread(vm, "P0", writer)
        Thread(vm, "P1", reader, seen=NOTHING)

    def exists(self, vm):
        return vm.by_name["P1"].seen == 0 and "P1 saw ready, and data was still 0"

    def outcome(self, vm):
        seen = vm.by_name["P1"].seen
        return "P1 came early" if seen == NOTHING else f"P1 saw data = {seen}"
