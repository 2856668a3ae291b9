"""What vCPUs remember of guest frames that have no slot, and the generation of the slots by which it is found stale.

A frame without a slot is a device's: KVM writes an spte that says so, with the generation of the slots in it, and the vCPU notes
the address as well; next time it goes to the emulator without a look at the slots.  A new slot makes all that stale at once,
because the generation differs.  `generation` is a field of each array; the spte has room for some of its bits only, so when those
wrap, all sptes are zapped.

One frame.  A vCPU's own note (vcpu->arch.mmio_*) is private, for nobody else reads it; 0 is "none" there.
[arch/x86/kvm/mmu/mmu.c, x86.h, virt/kvm/kvm_main.c, 6.16]
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.memslots import Task
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, choose, smp_store_release, xchg
from actors.srcu import Srcu, srcu_read_lock, srcu_read_unlock, synchronize_srcu_expedited
from actors.sync import Lock

IN_PROGRESS = 1 << 63  # KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
MMIO_SPTE_GEN_MASK = 3  # two bits here; 19 in 6.16
SLOT, NO_SLOT, INVALID = "slot", "no slot", "INVALID"
MEMORY, READ_ONLY, NONE = "memory", "memory, read-only", ""  # sptes; an MMIO spte is ("mmio", generation)


class MmioVm(Actor):
    """Two arrays of one slot that take turns, and one spte."""

    def __init__(self, vm: Any, name: str, slot: str, spte: Any, generation: int, vcpus: int = 1) -> None:
        super().__init__(vm, name)
        self.memslots = self.cell("memslots", 0)
        self.slots = (self.cell("slots0[0]", slot), self.cell("slots1[0]", slot))
        self.generation = (self.cell("slots0.generation", generation), self.cell("slots1.generation", generation))
        self.mmu_lock = Lock(self.cell("mmu_lock", ""))
        self.spte = self.cell("spte", spte)
        #: by the name of the vCPU that the interrupt goes to
        self.irqs = {f"vcpu{i}": self.cell(f"irq{i or ''}", "") for i in range(vcpus)}
        #: Many vCPUs touch the frame for long, one userspace is done in no time: so vCPU1 asks for the memory while they do.
        self.asked = self.cell("asked", False) if vcpus > 1 else None
        self.srcu = Srcu(vm, "srcu", [*self.irqs])

    def value_name(self, cell: Cell, value: Any) -> str:
        """Generations and sptes in words."""
        if cell.name.endswith("generation"):
            return f"{value & ~IN_PROGRESS}{', in progress' * bool(value & IN_PROGRESS)}"
        if cell is self.memslots:
            return f"slots{value}"
        if isinstance(value, tuple):
            return f"MMIO of generation {value[1]}"
        return str(value) or ("free" if cell is self.mmu_lock.cell else "none")


def mmio_vm(vm: Any) -> MmioVm:
    """The VM's one."""
    kvm: MmioVm = vm.by_name["kvm"]
    return kvm


class MmioVcpu(Task):
    """A vCPU thread; `noted` says that frame 0 is MMIO, `mmio_gen` of which generation."""

    def __init__(self, vm: Any, name: str, body: Any) -> None:
        super().__init__(vm, name, body, noted=False, mmio_gen=0, first="", second="")
        self.noted: bool
        self.mmio_gen: int
        self.first: str
        self.second: str


async def kvm_memslots_generation(kvm: MmioVm) -> int:
    """kvm_memslots(kvm)->generation: of what is active now, which need not be what was looked at before."""
    generation: int = await READ_ONCE(kvm.generation[await READ_ONCE(kvm.memslots)])
    return generation


# ---- the vCPU


async def vcpu_cache_mmio_info(vcpu: MmioVcpu) -> None:
    """Note the address, but not while slots are in flux.  [x86.h, 6.16: ddfd1730fd82]"""
    generation = await kvm_memslots_generation(mmio_vm(vcpu.vm))
    if not generation & IN_PROGRESS:
        vcpu.noted, vcpu.mmio_gen = True, generation
        vcpu.note("vcpu_cache_mmio_info", reason=f"generation {generation}")


async def mmio_info_in_cache(vcpu: MmioVcpu) -> bool:
    """Is the note about this address, and of this generation?  [x86.h vcpu_match_mmio_gpa]"""
    return vcpu.noted and vcpu.mmio_gen == await kvm_memslots_generation(mmio_vm(vcpu.vm))


async def check_mmio_spte(vcpu: MmioVcpu, spte: Any) -> bool:
    """Is the spte of this generation?  None is while slots are in flux.  [mmu.c]"""
    generation = await kvm_memslots_generation(mmio_vm(vcpu.vm))
    return not generation & IN_PROGRESS and bool(generation & MMIO_SPTE_GEN_MASK == spte[1])


async def mark_mmio_spte(kvm: MmioVm) -> None:
    """[mmu.c, spte.c make_mmio_spte]"""
    generation = await kvm_memslots_generation(kvm)
    await WRITE_ONCE(kvm.spte, ("mmio", generation & MMIO_SPTE_GEN_MASK))


async def x86_emulate_instruction(vcpu: MmioVcpu) -> str:
    """The note first; else the slots say whether it is memory.  [x86.c emulator_read_write_onepage]"""
    kvm = mmio_vm(vcpu.vm)
    if await vcpu.vm.calls.mmio_info_in_cache(vcpu):
        vcpu.note("kvm_mmio", reason="as noted")
        return "MMIO"
    if await READ_ONCE(kvm.slots[await READ_ONCE(kvm.memslots)]) == SLOT:
        return MEMORY
    vcpu.note("kvm_mmio", reason="no slot")
    return "MMIO"


async def handle_mmio_page_fault(vcpu: MmioVcpu) -> str:
    """The walk met an MMIO spte.  [mmu.c]"""
    kvm, calls = mmio_vm(vcpu.vm), vcpu.vm.calls
    if await calls.mmio_info_in_cache(vcpu):
        return "emulate"
    spte = await READ_ONCE(kvm.spte)  # get_mmio_spte()
    if not isinstance(spte, tuple):
        return "retry"
    if not await calls.check_mmio_spte(vcpu, spte):
        return "invalid"
    await calls.vcpu_cache_mmio_info(vcpu)
    return "emulate"


async def kvm_mmu_do_page_fault(vcpu: MmioVcpu) -> str:
    """Look the slot up, then write what it says into the spte.  [mmu.c kvm_mmu_faultin_pfn, kvm_tdp_mmu_map]"""
    kvm, calls = mmio_vm(vcpu.vm), vcpu.vm.calls
    slot = await READ_ONCE(kvm.slots[await READ_ONCE(kvm.memslots)])
    if calls.invalid_slot_retries(slot):
        return "retry"
    if slot != SLOT:
        await calls.vcpu_cache_mmio_info(vcpu)  # kvm_handle_noslot_fault()
    async with kvm.mmu_lock.held_by(vcpu):
        if slot == SLOT:
            await WRITE_ONCE(kvm.spte, MEMORY)
        else:
            await mark_mmio_spte(kvm)
    return MEMORY if slot == SLOT else "emulate"


def invalid_slot_retries(slot: str) -> bool:
    """A slot that is being deleted is no MMIO yet: its mappings are to be zapped first.  [mmu.c, 6.16]"""
    return slot == INVALID


async def guest_writes(vcpu: MmioVcpu) -> str:
    """The guest stores to frame 0; an exit is handled in a read section."""
    kvm = mmio_vm(vcpu.vm)
    spte = await READ_ONCE(kvm.spte)
    if spte == MEMORY:
        return MEMORY
    idx = await srcu_read_lock(vcpu, kvm.srcu)
    r = await vcpu.vm.calls.handle_mmio_page_fault(vcpu) if isinstance(spte, tuple) else "invalid"
    if r == "invalid":
        r = await kvm_mmu_do_page_fault(vcpu)
    if r == "emulate":
        r = await x86_emulate_instruction(vcpu)
    await srcu_read_unlock(vcpu, kvm.srcu, idx)
    return r


async def guest_writes_until_done(vcpu: MmioVcpu) -> str:
    """A fault that is retried comes again."""
    while (r := await guest_writes(vcpu)) == "retry":
        vcpu.checkpoint("retry")
    return r


async def emulated_write(vcpu: MmioVcpu) -> str:
    """KVM emulates an instruction for another reason, say in real mode, and that stores to frame 0."""
    kvm = mmio_vm(vcpu.vm)
    idx = await srcu_read_lock(vcpu, kvm.srcu)
    r = await x86_emulate_instruction(vcpu)
    await srcu_read_unlock(vcpu, kvm.srcu, idx)
    return r


async def probes_then_uses(vcpu: MmioVcpu) -> str:
    """The guest touches the frame twice at some time; told that memory is there, it does so again, one way or the other."""
    kvm = mmio_vm(vcpu.vm)
    vcpu.first = await guest_writes_until_done(vcpu)
    if kvm.asked is not None and vcpu.name == "vcpu1":
        await WRITE_ONCE(kvm.asked, True)
    vcpu.first = await guest_writes_until_done(vcpu)  # by what was remembered
    await await_eq(kvm.irqs[vcpu.name], "memory")
    vcpu.second = await (emulated_write(vcpu) if await choose(2) else guest_writes_until_done(vcpu))
    return f"{vcpu.first}, then {vcpu.second}"


# ---- the update


async def kvm_arch_memslots_updated(me: Task, generation: int) -> None:
    """When the bits in sptes wrap, sptes of long ago would match again: all go.  [mmu.c kvm_mmu_invalidate_mmio_sptes]"""
    if not generation & MMIO_SPTE_GEN_MASK:
        await kvm_mmu_zap_all(me)


async def kvm_mmu_zap_all(me: Task) -> None:
    """[mmu.c]"""
    kvm = mmio_vm(me.vm)
    async with kvm.mmu_lock.held_by(me):
        if await READ_ONCE(kvm.spte):
            await WRITE_ONCE(kvm.spte, NONE)


async def kvm_swap_active_memslots(me: Task, new: int) -> None:
    """In progress from before the pointer until after the grace period; then a new generation, once old sptes are gone."""
    kvm, calls = mmio_vm(me.vm), me.vm.calls
    generation = await READ_ONCE(kvm.generation[1 - new])
    await WRITE_ONCE(kvm.generation[new], generation | IN_PROGRESS)
    await smp_store_release(kvm.memslots, new)
    await synchronize_srcu_expedited(me, kvm.srcu)
    await calls.kvm_arch_memslots_updated(me, generation + 1)
    await WRITE_ONCE(kvm.generation[new], generation + 1)


async def plugs_memory(me: Task) -> str:
    """Userspace creates a slot, and tells the guest when that is done: each of its CPUs."""
    kvm = mmio_vm(me.vm)
    if kvm.asked is not None:
        await await_eq(kvm.asked, True)
    await WRITE_ONCE(kvm.slots[1], SLOT)
    await me.vm.calls.kvm_swap_active_memslots(me, 1)
    for irq in kvm.irqs.values():
        await xchg(irq, "memory")
    return "created a slot"


async def unplugs_memory(me: Task) -> str:
    """Userspace deletes a slot: INVALID, zapped, gone."""
    kvm, calls = mmio_vm(me.vm), me.vm.calls
    await WRITE_ONCE(kvm.slots[1], INVALID)
    await calls.kvm_swap_active_memslots(me, 1)
    await kvm_mmu_zap_all(me)
    await WRITE_ONCE(kvm.slots[0], NO_SLOT)
    await calls.kvm_swap_active_memslots(me, 0)
    return "deleted the slot"


#: what a scenario may replace
FUNCTIONS = {
    f.__name__: f
    for f in (
        check_mmio_spte,
        handle_mmio_page_fault,
        invalid_slot_retries,
        kvm_arch_memslots_updated,
        kvm_swap_active_memslots,
        mmio_info_in_cache,
        vcpu_cache_mmio_info,
    )
}


# ---- as it was


async def cache_untagged(vcpu: MmioVcpu) -> None:
    """The note says no generation.  [x86.h, 3.11]"""
    vcpu.noted = True


async def untagged_in_cache(vcpu: MmioVcpu) -> bool:
    """Is the note about this address?  [x86.h, 3.11]"""
    return vcpu.noted


async def cache_tagged(vcpu: MmioVcpu) -> None:
    """Whatever the generation is, and be it one in flux.  [x86.h, 3.19: 56f17dd3fbc4]"""
    vcpu.noted, vcpu.mmio_gen = True, await kvm_memslots_generation(mmio_vm(vcpu.vm))


async def check_spte_whatever(vcpu: MmioVcpu, spte: Any) -> bool:
    """The same for sptes.  [mmu.c, 3.19]"""
    generation = await kvm_memslots_generation(mmio_vm(vcpu.vm))
    return bool(generation & MMIO_SPTE_GEN_MASK == spte[1])


async def install_with_next(me: Task, new: int) -> None:
    """The new generation comes with the new slots.  [kvm_main.c install_new_memslots, update_memslots, 3.11]"""
    kvm = mmio_vm(me.vm)
    await WRITE_ONCE(kvm.generation[new], await READ_ONCE(kvm.generation[1 - new]) + 1)
    await smp_store_release(kvm.memslots, new)
    await synchronize_srcu_expedited(me, kvm.srcu)


async def install_odd(me: Task, new: int) -> None:
    """An odd generation comes with the new slots, an even one after the grace period, and then a look whether it wrapped.

    [kvm_main.c install_new_memslots, 3.19: ee3d1570b586]
    """
    kvm = mmio_vm(me.vm)
    await WRITE_ONCE(kvm.generation[new], await READ_ONCE(kvm.generation[1 - new]) + 1)
    await smp_store_release(kvm.memslots, new)
    await synchronize_srcu_expedited(me, kvm.srcu)
    generation = await READ_ONCE(kvm.generation[new]) + 1
    await WRITE_ONCE(kvm.generation[new], generation)
    await me.vm.calls.kvm_arch_memslots_updated(me, generation)


# ---- as it must not be, or could be


async def handle_mmio_page_fault_gen_first(vcpu: MmioVcpu) -> str:
    """The generation once, before the spte: who sees the last generation sees that sptes were zapped, and notes that one."""
    kvm = mmio_vm(vcpu.vm)
    if await vcpu.vm.calls.mmio_info_in_cache(vcpu):
        return "emulate"
    generation = await kvm_memslots_generation(kvm)
    spte = await READ_ONCE(kvm.spte)
    if not isinstance(spte, tuple):
        return "retry"
    if generation & IN_PROGRESS or generation & MMIO_SPTE_GEN_MASK != spte[1]:
        return "invalid"
    vcpu.noted, vcpu.mmio_gen = True, generation
    return "emulate"


async def swap_updated_late(me: Task, new: int) -> None:
    """The generation, then the look whether it wrapped: the order before 152482580a1b."""
    kvm = mmio_vm(me.vm)
    generation = await READ_ONCE(kvm.generation[1 - new])
    await WRITE_ONCE(kvm.generation[new], generation | IN_PROGRESS)
    await smp_store_release(kvm.memslots, new)
    await synchronize_srcu_expedited(me, kvm.srcu)
    await WRITE_ONCE(kvm.generation[new], generation + 1)
    await me.vm.calls.kvm_arch_memslots_updated(me, generation + 1)


async def swap_generation_early(me: Task, new: int) -> None:
    """The new generation does not wait for the grace period."""
    kvm = mmio_vm(me.vm)
    generation = await READ_ONCE(kvm.generation[1 - new])
    await WRITE_ONCE(kvm.generation[new], generation | IN_PROGRESS)
    await smp_store_release(kvm.memslots, new)
    await me.vm.calls.kvm_arch_memslots_updated(me, generation + 1)
    await WRITE_ONCE(kvm.generation[new], generation + 1)
    await synchronize_srcu_expedited(me, kvm.srcu)


async def swap_without_flag(me: Task, new: int) -> None:
    """The new slots have the old generation until after the grace period."""
    kvm = mmio_vm(me.vm)
    generation = await READ_ONCE(kvm.generation[1 - new])
    await WRITE_ONCE(kvm.generation[new], generation)
    await smp_store_release(kvm.memslots, new)
    await synchronize_srcu_expedited(me, kvm.srcu)
    await me.vm.calls.kvm_arch_memslots_updated(me, generation + 1)
    await WRITE_ONCE(kvm.generation[new], generation + 1)


def invalid_is_mmio(slot: str) -> bool:
    """A slot that is being deleted is none."""
    return False
