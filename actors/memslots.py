"""Memory slots: immutable arrays behind a pointer, and the ioctl that replaces them.  [virt/kvm/kvm_main.c, 2.6.34]

A slot maps a range of guest frames (gfn) to a range of the VMM's memory (hva).  `kvm->memslots` points to an array of slots that
nobody changes while readers can reach it: an update copies the array, changes the copy, publishes it, waits until nobody reads
the old one, and frees that.  kfree() is seen here as a store of "freed": an array is never used again, so whoever finds that
value uses freed memory.  Each slot of an array is one cell; so is the one entry of a slot's rmap, and of its dirty bitmap.

Frames and pages are small numbers; a slot is one to four frames long, of which the first may be mapped.  Private slots, of
KVM's own memory, are not modelled, nor is memory that KVM allocates for old userspace (user_alloc is 1); so mmap_sem is no part
of this, and kvm_is_visible_gfn(), which looks at the 32 user slots only, sees what the others see who look at nmemslots: entries
beyond that number are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op, choose, smp_store_release, xchg
from actors.srcu import Srcu, synchronize_srcu, synchronize_srcu_expedited
from actors.sync import Lock

KVM_MEM_LOG_DIRTY_PAGES, KVM_MEMSLOT_INVALID = 1, 2  # bits 0 and 1 at the time; INVALID is bit 16 since 3.8
KVM_MEMORY_SLOTS, KVM_PRIVATE_MEM_SLOTS = 32, 4
EINVAL, EEXIST, ENOMEM = 22, 17, 12
PAGE_SHIFT = 12
BITS_PER_LONG = 64
WRITER = 1 << 8  # of slots_rwsem, where vCPU n that reads is bit n
READER = WRITER << 1  # where readers are counted, as in C: one of them
FREED, GARBAGE, NONE = "freed", "uninitialised", ""


class Slot(NamedTuple):
    """A struct kvm_memory_slot; in cells it is a plain tuple."""

    base_gfn: int = 0
    npages: int = 0
    flags: int = 0
    hva: int = 0
    rmap: str = NONE  # the name of the cell
    dirty_bitmap: str = NONE

    def holds(self, gfn: int) -> bool:
        """Is the guest frame in this slot?"""
        return self.base_gfn <= gfn < self.base_gfn + self.npages


class Memslots(Actor):
    """The part of struct kvm that slots are about."""

    def __init__(self, vm: Any, name: str, slots: Iterable[Slot], arrays: int, readers: list[str]) -> None:
        """`slots` is what the first of `arrays` arrays has at the start; `readers` are the threads that may read under SRCU."""
        super().__init__(vm, name)
        first = list(slots)
        self.memslots = self.cell("memslots", "slots1")
        self.slots_lock = Lock(self.cell("slots_lock", ""))
        self.slots_rwsem = self.cell("slots_rwsem", 0)  # the same lock before it was a mutex; a bit for each reader ...
        self.counted = len(readers) > 8  # ... or, as in C, their number
        self.arrays: dict[str, list[Cell]] = {
            f"slots{n}": [self.cell(f"slots{n}[{i}]", tuple(slot) if n == 1 else GARBAGE) for i, slot in enumerate(first)]
            for n in range(1, arrays + 1)
        }
        #: what slots point to: rmaps ("none" or "spte") and dirty bitmaps (0 or 1)
        self.tables: dict[str, Cell] = {}
        self.srcu = Srcu(vm, "srcu", readers)

    def table(self, name: str, init: Any) -> str:
        """A new rmap or dirty bitmap with this content."""
        self.tables[name] = self.cell(name, init)
        return name

    def now(self) -> list[Slot]:
        """The slots as they are, for judgements of an end state."""
        return [Slot(*cell.value) for cell in self.arrays[self.memslots.value]]

    def value_name(self, cell: Cell, value: Any) -> str:
        """A slot in a few words, or who holds the semaphore."""
        name = cell.name
        if name == "slots_rwsem":
            readers = [f"vcpu{bit} reads" for bit in range(8) if value >> bit & 1]
            readers += [f"{value // READER} read"] * (value >= READER)
            return ", ".join([*readers, *["userspace writes"] * bool(value & WRITER)]) or "free"
        if not isinstance(value, tuple):
            return str(value) if value != "" else "empty" if name.startswith("rmap") else "free"
        slot = Slot(*value)
        if not slot.npages:
            return "no slot"
        last = slot.base_gfn + slot.npages - 1
        gfns = f"gfn {slot.base_gfn}" + (f"-{last}" if last > slot.base_gfn else "")
        flags = " log" * bool(slot.flags & KVM_MEM_LOG_DIRTY_PAGES) + " INVALID" * bool(slot.flags & KVM_MEMSLOT_INVALID)
        return f"{gfns} at hva {slot.hva}{flags}"


class Task(Actor):
    """A thread that may die of what it finds: `oops` is what the kernel's log has of it, `end` how it ended otherwise."""

    end: str

    def __init__(self, vm: Any, name: str, body: Callable[[Any], Any], **private: Any) -> None:
        super().__init__(vm, name)
        self.body = body
        self.oops = self.cell("oops", "")
        self.private(end="", **private)

    def value_name(self, cell: Cell, value: Any) -> str:
        """Nothing is "none"."""
        return str(value) if value != "" else "none"

    def run(self) -> Any:
        """The body is the thread."""
        return self._run()

    async def _run(self) -> None:
        try:
            self.end = await self.body(self)
        except Oops as oops:
            self.end = "oops"
            await die(self, str(oops))


async def die(me: Task, text: str) -> None:
    """What the kernel does then: it says so, and the thread is gone, with what it held.  [arch/x86/kernel/dumpstack.c]"""
    await xchg(me.oops, text)


class Oops(Exception):
    """The kernel would crash, or go on with garbage: the check that failed, and why."""


# ---- readers: each access may meet another array, and a freed one


async def slot_of(kvm: Memslots, array: str, i: int) -> Slot:
    """Load one slot of an array."""
    value = await READ_ONCE(kvm.arrays[array][i])
    if value == FREED:
        raise Oops(f"M-I1: reads {array}, which is freed")
    if value == GARBAGE:
        raise Oops(f"M-I7: reads {array} before it is filled in")
    return Slot(*value)


def bitmap_word(bitmap: str, nr: int) -> str:
    """The cell that has bit `nr` of a dirty bitmap: an array of unsigned long, of which all but the first are rarely there."""
    return bitmap if nr < BITS_PER_LONG else f"{bitmap}+{nr // BITS_PER_LONG}"


async def table_of(kvm: Memslots, name: str) -> Any:
    """Load what a slot points to."""
    value = await READ_ONCE(kvm.tables[name])
    if value == FREED:
        raise Oops(f"M-I1: reads {name}, which is freed")
    return value


async def gfn_to_memslot(kvm: Memslots, gfn: int) -> Slot | None:
    """The slot of a guest frame, and be it INVALID: tearing down needs its rmap.  [kvm_main.c gfn_to_memslot_unaliased]"""
    array = await READ_ONCE(kvm.memslots)  # rcu_dereference()
    for i in range(len(kvm.arrays[array])):
        slot = await slot_of(kvm, array, i)
        if slot.holds(gfn):
            return slot
    return None


async def gfn_to_hva(kvm: Memslots, gfn: int) -> int | None:
    """Where a guest frame is in the VMM's memory; not for INVALID slots: nobody gets a new mapping.  [kvm_main.c]"""
    slot: Slot | None = await gfn_to_memslot(kvm, gfn)
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        return None  # bad_hva()
    return slot.hva + gfn - slot.base_gfn


async def memslot_id(kvm: Memslots, gfn: int) -> int:
    """The number of the slot of a frame; of the last slot, if none has the frame.  [kvm_main.c, 2.6.34]"""
    array = await READ_ONCE(kvm.memslots)  # rcu_dereference(): not what the caller looked at
    i = 0
    for i in range(len(kvm.arrays[array])):
        slot = await slot_of(kvm, array, i)
        if slot.holds(gfn):
            break
    return i


async def kvm_is_visible_gfn(kvm: Memslots, gfn: int) -> bool:
    """May a shadow root be made of this frame?  Not of an INVALID slot's.  [kvm_main.c]"""
    slot = await gfn_to_memslot(kvm, gfn)
    return slot is not None and not slot.flags & KVM_MEMSLOT_INVALID


# ---- the lock: a mutex since 79fac95ecfa3, which came with SRCU; a reader-writer semaphore before


async def slots_lock(me: Actor, kvm: Memslots) -> None:
    """mutex_lock(&kvm->slots_lock)."""
    await kvm.slots_lock.acquire(me)


async def slots_unlock(me: Actor, kvm: Memslots) -> None:
    """mutex_unlock(&kvm->slots_lock)."""
    await kvm.slots_lock.release()


# ---- the update


def rcu_assign_pointer(cell: Cell, value: Any) -> Op:
    """Publish: what was stored before is visible to whoever sees the pointer."""
    return smp_store_release(cell, value)


class Region(NamedTuple):
    """A struct kvm_userspace_memory_region, in bytes; memory_size == 0 deletes."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    @property
    def base_gfn(self) -> int:
        """The first guest frame."""
        return self.guest_phys_addr >> PAGE_SHIFT

    @property
    def npages(self) -> int:
        """How many."""
        return self.memory_size >> PAGE_SHIFT

    @property
    def hva(self) -> int:
        """The VMM's page."""
        return self.userspace_addr >> PAGE_SHIFT


def region(slot: int, base_gfn: int, npages: int, hva: int = 0, flags: int = 0) -> Region:
    """The same, counted in pages."""
    return Region(slot, flags, base_gfn << PAGE_SHIFT, npages << PAGE_SHIFT, hva << PAGE_SHIFT)


class Updater(Task):
    """Userspace: a thread that changes slots.  it may allocate the arrays `fresh`, this rmap, bitmap2."""

    def __init__(self, vm: Any, name: str, body: Callable[[Any], Any], kvm: Memslots, fresh: Iterable[str], rmap: str) -> None:
        super().__init__(vm, name, body, r=None, used=0)
        self.kvm = kvm
        self.fresh = tuple(fresh)
        self.rmap, self.dirty_bitmap = rmap, "bitmap2"
        self.memory_is_short = False
        self.r: int | None  # what the ioctl returned
        self.used: int

    async def kzalloc(self) -> str | None:
        """Memory for an array of slots."""
        if self.memory_is_short and await choose(2):
            return None
        self.used += 1
        return self.fresh[self.used - 1]


async def copy_memslots(me: Updater, change: int, slot: Slot | None = None) -> str | None:
    """kzalloc() and memcpy() of the present array, with slot `change` replaced: by an INVALID one if `slot` is None."""
    kvm = me.kvm
    copy = await me.kzalloc()
    if copy is None:
        return None
    array = await READ_ONCE(kvm.memslots)
    for i, to in enumerate(kvm.arrays[copy]):
        entry = await slot_of(kvm, array, i)
        if i == change:
            entry = slot if slot is not None else entry._replace(flags=entry.flags | KVM_MEMSLOT_INVALID)
        await WRITE_ONCE(to, tuple(entry))
    return copy


async def publish(me: Updater, copy: str) -> str:
    """Swap the pointer; returns the array that it replaced."""
    old: str = await READ_ONCE(me.kvm.memslots)
    await me.vm.calls.rcu_assign_pointer(me.kvm.memslots, copy)
    return old


async def kfree(me: Updater, array: str) -> None:
    """Free an array: from here on nobody may look at it."""
    for cell in me.kvm.arrays[array]:
        await WRITE_ONCE(cell, FREED)


async def kvm_free_physmem_slot(me: Updater, old: Slot, new: Slot) -> None:
    """vfree() what the old slot points to and the new one does not.  [kvm_main.c]"""
    for had, has in ((old.rmap, new.rmap), (old.dirty_bitmap, new.dirty_bitmap)):
        if had and had != has:
            await WRITE_ONCE(me.kvm.tables[had], FREED)


async def synchronize_memslots(me: Updater) -> None:
    """synchronize_srcu_expedited(&kvm->srcu)."""
    await synchronize_srcu_expedited(me, me.kvm.srcu)


async def synchronize_memslots_slowly(me: Updater) -> None:
    """synchronize_srcu(&kvm->srcu)."""
    await synchronize_srcu(me, me.kvm.srcu)


def wants_invalid_step(old: Slot, new: Slot) -> bool:
    """Is the slot first made INVALID?  If it is deleted.  [kvm_main.c __kvm_set_memory_region, 2.6.34]"""
    return not new.npages


def malformed(mem: Region) -> bool:
    """Not whole pages, no such slot, or beyond the end of memory: -EINVAL for each of them, so the order is no matter."""
    whole = not (mem.memory_size | mem.guest_phys_addr | mem.userspace_addr) & (1 << PAGE_SHIFT) - 1
    there = mem.slot < KVM_MEMORY_SLOTS + KVM_PRIVATE_MEM_SLOTS and mem.guest_phys_addr + mem.memory_size < 1 << 64
    return not (whole and there)


async def check_region(me: Updater, mem: Region) -> int:
    """What can be said against a request, in the order of the kernel.  [kvm_main.c __kvm_set_memory_region, 2.6.34]"""
    kvm = me.kvm
    if malformed(mem):
        return -EINVAL
    array = await READ_ONCE(kvm.memslots)
    old = await slot_of(kvm, array, mem.slot)
    if mem.npages and old.npages and mem.npages != old.npages:
        return -EINVAL  # a slot's size cannot change
    return await check_overlaps(me, mem, array)


async def check_overlaps(me: Updater, mem: Region, array: str) -> int:
    """User slots are disjoint; also if nothing is asked for, in the middle of another."""
    for i, _ in enumerate(me.kvm.arrays[array][:KVM_MEMORY_SLOTS]):
        s = await slot_of(me.kvm, array, i) if i != mem.slot else Slot()
        if s.npages and mem.base_gfn + mem.npages > s.base_gfn and mem.base_gfn < s.base_gfn + s.npages:
            return -EEXIST
    return 0


async def new_slot(me: Updater, mem: Region) -> tuple[Slot, Slot]:
    """(the slot as it is, as it shall be): rmap and bitmap are allocated, the hva is taken only with a new rmap."""
    array = await READ_ONCE(me.kvm.memslots)
    old = await slot_of(me.kvm, array, mem.slot)
    if not mem.npages:
        flags = mem.flags & ~KVM_MEM_LOG_DIRTY_PAGES
        return old, Slot(mem.base_gfn, 0, flags, old.hva)  # rmap and bitmap are freed with `old`
    new = old._replace(base_gfn=mem.base_gfn, npages=mem.npages, flags=mem.flags)
    if not mem.flags & KVM_MEM_LOG_DIRTY_PAGES:
        new = new._replace(dirty_bitmap=NONE)
    elif not new.dirty_bitmap:
        new = new._replace(dirty_bitmap=me.dirty_bitmap)
    return old, new if new.rmap else new._replace(rmap=me.rmap, hva=mem.hva)


async def __kvm_set_memory_region(me: Updater, mem: Region) -> int:
    """KVM_SET_USER_MEMORY_REGION, with slots_lock held.  [kvm_main.c, 2.6.34]"""
    calls = me.vm.calls
    r: int = await calls.check_region(me, mem)
    if r:
        return r
    old, new = await calls.new_slot(me, mem)
    r = await calls.kvm_set_memslot(me, mem, old, new)
    return r


async def kvm_set_memslot(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """Two steps to delete: INVALID, which stops new mappings and lets old ones be torn down; then gone.  [2.6.34]"""
    calls = me.vm.calls
    if calls.wants_invalid_step(old, new):
        copy = await copy_memslots(me, mem.slot)
        if copy is None:
            return -ENOMEM
        await calls.invalidate_memslot(me, copy)
    if await kvm_arch_prepare_memory_region(me):
        return -ENOMEM  # and what was made INVALID stays so
    copy = await copy_memslots(me, mem.slot, new)
    if copy is None:
        return -ENOMEM  # likewise
    replaced = await calls.install_new_memslots(me, copy)
    await calls.kvm_arch_commit_memory_region(me, mem, old)
    await kvm_free_physmem_slot(me, old, new)
    await kfree(me, replaced)
    if calls.logging_begins(old, new):
        await calls.kvm_arch_flush_shadow(me)
    return 0


async def invalidate_memslot(me: Updater, copy: str) -> None:
    """The first step of a deletion: from the grace period on nobody makes new mappings of the slot, so those there go."""
    old = await publish(me, copy)
    await me.vm.calls.synchronize_memslots(me)
    await me.vm.calls.kvm_arch_flush_shadow(me)
    await kfree(me, old)


async def install_new_memslots(me: Updater, copy: str) -> str:
    """The second step, and the only one of a creation: returns the array that nobody reads any more."""
    old = await publish(me, copy)
    await me.vm.calls.synchronize_memslots(me)
    return old


async def kvm_arch_prepare_memory_region(me: Updater) -> bool:
    """What the architecture does beforehand; says whether it failed.

    It may, says the caller's code, also for a deletion.  x86's own cannot in 2.6.34: it fails only where it has to mmap() for a
    new slot of old userspace.  [x86.c kvm_arch_prepare_memory_region, 2.6.34]
    """
    return me.memory_is_short and bool(await choose(2))


def logging_begins(old: Slot, new: Slot) -> bool:
    """Is an existing slot logged from now on?  Then writable mappings go.  [kvm_main.c, 2.6.34]"""
    return bool(old.npages and not old.flags & KVM_MEM_LOG_DIRTY_PAGES and new.flags & KVM_MEM_LOG_DIRTY_PAGES)


async def kvm_set_memory_region(me: Updater, mem: Region) -> int:
    """The ioctl.  [kvm_main.c]"""
    calls = me.vm.calls
    await calls.slots_lock(me, me.kvm)
    r: int = await calls.__kvm_set_memory_region(me, mem)
    await calls.slots_unlock(me, me.kvm)
    return r
