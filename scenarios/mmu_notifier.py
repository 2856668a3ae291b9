"""A page that the host takes away while vCPUs map it (KVM patch e930bffe95e1, July 2008).

KVM maps guest memory with translations of its own, sptes, which the host's memory management does not see.  Before the patch
each spte kept a reference: the host could not swap such a page out (it is pinned), and after munmap() and mmap() the guest
went on with the old page while the process had a new one.  Without the references it is a use after free.

The patch lets the host call KVM.  A fault reads mmu_notifier_seq, asks the host for the page, and maps it under mmu_lock only if
no invalidation is under way (mmu_notifier_count) or has ended since (the sequence).  "after" is the patch as committed; it
flushes TLBs once it has released mmu_lock, so of two that take the same page away the second finds no spte, and the page is freed
while a TLB still has it.  It looks for huge pages at gfn_offset / 512, which is another huge page's index if the slot is not
aligned; and it clears bit 5 of an EPT entry as "accessed", where it belongs to the memory type.  "fixed" is 3.8.

Modelled: the page-fault path, the speculative path of emulated pte writes, reverse maps, the callbacks, requests and IPIs with
acknowledgements, reference counts, reclaim, munmap, migration, KSM, aging.  Left out: the order of loads, dirty bits, shadow
pages and their roots, release(), the gfn_to_pfn cache, SRCU around the slots.

In the kernel's sources: a missing flush in clear_flush_young (N-M24) costs only accuracy where hardware keeps an accessed bit;
with the bit emulated by unmapping (since 6316e1c8c6af) it leaves a TLB entry that no later callback knows of.  Dropping the
page's reference before the spte is cleared (N-M23) is 2.6.27's own order: the host holds one of its own until the callback
returns.  smp_wmb() in range_end is for those who ask without mmu_lock, PowerPC's kvmppc_h_enter(); x86 does not need it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from actors import mmu_2008 as old
from actors import mmu_later as later
from actors import mmu_notifier as kvm
from actors.actor import Cell
from actors.host_mm import PAGE1, UNUSED, HostMM, age_and_reclaim, get_user_pages, ksm_replace_page, migrate, munmap, reclaim
from actors.mmu import (
    EPT_MEMORY_TYPE,
    HVA,
    KVM_REQ_TLB_FLUSH,
    MAPPED,
    PAGE_SHIFT,
    PT_ACCESSED_SHIFT,
    RETRY,
    Mmu,
    MmuThread,
    MmuVcpu,
    drop_spte,
    fault_until_mapped,
    kvm_handle_hva,
    kvm_mmu_pte_write,
    kvm_unmap_hva,
    make_spte,
    mmu_set_spte,
    release_mapped_pfn,
    spte_name,
    spte_to_pfn,
    vcpu_in_guest,
    vcpu_run,
)
from actors.ops import (
    CALL_QUEUED,
    IN_GUEST,
    READ_ONCE,
    WRITE_ONCE,
    clear_bit,
    cmpxchg,
    send_ipi,
    set_bit,
    smp_mb,
    smp_wmb,
)
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm

Functions = dict[str, Callable[..., Any]]


# One blank line between functions from here to `fmt: on`, so that a version is seen on one screen.
# fmt: off
# ---- the versions: before | after, as committed | fixed is the machine's own
NO_REFS: Functions = {"release_mapped_pfn": release_mapped_pfn, "drop_spte": drop_spte}
BEFORE: Functions = {**old.REFERENCES, **old.NO_NOTIFIER, "invlpg": old.invlpg_2008}
AFTER: Functions = {**old.COMMITTED, **old.FLUSH_OUTSIDE}

# ---- mutants
def fault(*order: str) -> Callable[..., Any]:
    """tdp_page_fault() with its accesses in this order: "seq", "gup", "check", "lock"; what is missing is left out."""

    async def tdp_page_fault(vcpu: Any) -> int:
        mmu: Mmu = vcpu.mmu
        seq = pfn = 0
        for access in order:
            if access == "seq":
                seq = await READ_ONCE(mmu.seq)
            elif access == "gup":
                pfn = await get_user_pages(vcpu)
            elif access == "lock":
                await mmu.mmu_lock.acquire(vcpu)
            elif await vcpu.vm.calls.mmu_notifier_retry(vcpu, seq):
                if "lock" in order[:order.index("check")]:
                    await mmu.mmu_lock.release()
                if order[-1] != "keep":
                    await vcpu.mm.put_page(pfn)
                return RETRY
        await mmu_set_spte(vcpu, pfn)
        await mmu.mmu_lock.release()
        return MAPPED

    tdp_page_fault.__name__ = f"fault_{'_'.join(order)}"
    return tdp_page_fault

async def m4_only_seq(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry() that does not look at the count."""
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)

async def m5_only_count(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry() that does not look at the sequence."""
    return bool(await READ_ONCE(me.mmu.count))

async def m7_seq_after_unlock(me: Any) -> None:
    """invalidate_page() that raises the sequence too late."""
    async with me.mmu.mmu_lock.held_by(me):
        if await kvm_unmap_hva(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)
    await kvm.seq_inc(me)

async def m8_no_unmap(me: Any, rmapp: Cell) -> int:
    """kvm_unmap_rmapp(): does nothing."""
    return 0

async def m9_no_flush(me: Any) -> None:
    """kvm_flush_remote_tlbs(): does nothing."""

async def m10_flush_later(me: Any) -> None:
    """kvm_flush_remote_tlbs(): each vCPU flushes before its next entry, whenever that is."""
    for vcpu in me.vm.vcpus:
        await set_bit(KVM_REQ_TLB_FLUSH, vcpu.requests)
        await smp_mb()

async def m10_no_ack(me: Any, pcpus: list[Any]) -> None:
    """smp_call_function_many(): does not wait."""
    for pcpu in pcpus:
        await pcpu.call_function()
        await send_ipi(pcpu.name)

async def m13_count_first(me: Any) -> None:
    """range_end(): the count goes down before the sequence goes up."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm.count_add(me, -1)
        await smp_wmb()
        await kvm.seq_inc(me)

async def no_wmb(me: Any) -> None:
    """range_end() without smp_wmb()."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm.seq_inc(me)
        await kvm.count_add(me, -1)

async def m14_seq_first(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry(): the sequence, then the count."""
    if await READ_ONCE(me.mmu.seq) != mmu_seq:
        return True
    return bool(await READ_ONCE(me.mmu.count))

def m18_no_huge(mmu: Mmu) -> None:
    """kvm_handle_hva(): only the small pages' reverse map."""

async def m22_two_halves(me: Any, rmapp: Cell) -> None:
    """drop_spte() on a 32-bit host, the upper half first: for a moment the spte maps another page."""
    await WRITE_ONCE(me.mmu.spte, HALF)
    await WRITE_ONCE(me.mmu.spte, 0)
    await WRITE_ONCE(rmapp, "")

HALF = make_spte(0)  # present, page frame bits 32 and up cleared

def make_npt_spte(pfn: int) -> int:
    """A page-table entry with accessed bit: present, writable, user, accessed, dirty."""
    return pfn << PAGE_SHIFT | 0x67

async def age_accessed_bit(me: Any, rmapp: Cell) -> int:
    """[mmu.c kvm_age_rmapp, 3.8, with shadow_accessed_mask]"""
    if not await READ_ONCE(rmapp) or not await READ_ONCE(me.mmu.spte) >> PT_ACCESSED_SHIFT & 1:
        return 0
    await clear_bit(PT_ACCESSED_SHIFT, me.mmu.spte)
    return 1

async def walk_sets_accessed(vcpu: Any) -> int:
    """The hardware walks, and marks the entry in one locked step; if it has changed, it walks again."""
    while True:
        spte: int = await READ_ONCE(vcpu.mmu.spte)
        young = spte | 1 << PT_ACCESSED_SHIFT
        if not spte or spte == young or await cmpxchg(vcpu.mmu.spte, spte, young) == spte:
            return young if spte else 0

async def m24_young_no_flush(me: Any) -> None:
    """clear_flush_young() without the flush."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm_handle_hva(me, me.vm.calls.kvm_age_rmapp)

NPT: Functions = {"make_spte": make_npt_spte, "kvm_age_rmapp": age_accessed_bit, "walk": walk_sets_accessed}
NO_YOUNG_FLUSH: Functions = {"kvm_mmu_notifier_clear_flush_young": m24_young_no_flush}
HOLD: Functions = {**old.REFERENCES, "kvm_mmu_notifier_change_pte": old.change_pte_2008}  # change_pte() came after them

# ---- who runs
async def invalidate_elsewhere(me: Any) -> None:
    """A munmap() of other addresses that has begun, and is not finished while we look."""
    await me.vm.calls.kvm_mmu_notifier_invalidate_range_start(me)

async def set_user_memory_region(me: Any) -> None:
    """The VMM adds the slot in which the address is."""
    await me.vm.calls.install_memslot(me)

async def guest_invlpg(me: Any) -> None:
    """Another vCPU's exit for INVLPG."""
    await me.vm.calls.invlpg(me)

WHO: dict[str, tuple[Any, dict[str, Any]]] = {
    "munmap": (fault_until_mapped, {"munmap": munmap}),
    "reclaim": (fault_until_mapped, {"kswapd": reclaim}),
    "prefetch": (kvm_mmu_pte_write, {"migration": migrate}),
    "huge": (fault_until_mapped, {"kswapd": reclaim}),
    "twice": (vcpu_in_guest, {"munmap": munmap, "kswapd": reclaim}),
    "aging": (vcpu_run, {"kswapd": age_and_reclaim}),
    "ksm": (vcpu_run, {"ksmd": ksm_replace_page}),
    "invlpg": (vcpu_in_guest, {"invlpg": guest_invlpg, "kswapd": reclaim}),
    "elsewhere": (fault_until_mapped, {"munmap": invalidate_elsewhere}),
    "new_slot": (None, {"munmap": munmap, "userspace": set_user_memory_region}),
}

def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)

FAULTS = ("munmap", "reclaim", "prefetch", "huge")  # a fault races with whoever takes the page away
FLUSHES = ("twice", "aging", "ksm", "invlpg")  # the page is mapped, and a TLB has it or gets it
FREE: dict[str, Claim] = {"elsewhere": Never}  # no fault waits for what it has nothing to do with
TAKEN_AWAY: dict[str, Claim] = {**sometimes(*FAULTS), **sometimes(*FLUSHES, word=Always), **FREE}
NO_FLUSH: dict[str, Claim] = {"twice": Always, "invlpg": Always, **sometimes("aging", "ksm")}
# fmt: on

# ---- what must hold


class SpteMapsNoFreePage(Monitor):
    """No spte maps a page that the host has freed, or wants to free and cannot because of the spte."""

    check = "N-I1"

    def __init__(self, mmu: Mmu, mm: HostMM) -> None:
        super().__init__([mmu.spte, *mm.refs.values()])
        self.mmu, self.mm = mmu, mm
        self.most = 2 + 2 * len(mmu.vm.vcpus)  # the mapping, the spte, and two for each that maps speculatively

    def on_step(self, step: Step) -> Violation | None:
        """Judge the state after a step on the spte or on a reference count."""
        if step.cell is not self.mmu.spte and step.after > self.most:
            return Violation("references", f"{step.after} references of one page, and nobody drops them", (step.n,))
        pfn = spte_to_pfn(self.mmu.spte.value)
        if step.cell is self.mmu.spte and step.writes:
            self.where["spte"] = step.n
        fatal = tuple(dict.fromkeys((self.where.get("spte", step.n), step.n)))
        if pfn and not self.mm.refs[pfn].value:
            return Violation(self.check, f"the spte maps page {pfn}, which the host has freed", fatal)
        if step.cell is not self.mmu.spte and step.cell is self.mm.refs.get(pfn) and step.op.fn == "cmpxchg" and step.before != 1:
            return Violation("N-I6", f"page {pfn} cannot be taken away: the spte still maps it, and pins it", fatal)
        return None


class TlbMapsNoFreePage(Monitor):
    """No vCPU is in the guest with a translation to a page that the host has freed."""

    check = "N-I1"

    def __init__(self, vcpu: MmuVcpu) -> None:
        super().__init__([vcpu.tlb, vcpu.pcpu.cpu, *vcpu.mm.refs.values()])
        self.vcpu = vcpu

    def on_step(self, step: Step) -> Violation | None:
        """Judge the state after a step on the TLB, on the CPU, or on a reference count."""
        spte = self.vcpu.tlb.value
        pfn = spte_to_pfn(spte)
        if step.writes and step.cell is self.vcpu.tlb:
            self.where["seen"] = step.n
        fatal = tuple(dict.fromkeys((self.where.get("seen", step.n), step.n)))
        if spte and self.vcpu.pcpu.cpu.value & IN_GUEST:
            if not pfn:
                return Violation("torn spte", f"{self.vcpu.name} walked an spte of which half was written", fatal)
            if not self.vcpu.mm.refs[pfn].value:
                text = f"{self.vcpu.name} runs with a TLB entry for page {pfn}, which the host has freed"
                return Violation(self.check, text, fatal)
            if spte & EPT_MEMORY_TYPE == 2 << 3:
                text = f"{self.vcpu.name} walked an EPT entry of memory type 2: EPT misconfiguration, the VM dies"
                return Violation("EPT", text, fatal)
        return None


class NoSpteDuringInvalidation(Monitor):
    """No spte is made while its range is being invalidated."""

    check = "N-I3"

    def __init__(self, mmu: Mmu) -> None:
        super().__init__([mmu.spte], reads=[mmu.count])
        self.mmu = mmu

    def on_step(self, step: Step) -> Violation | None:
        """Judge a step on the spte."""
        if step.writes and step.after and not step.before and self.mmu.count.value:
            return Violation(self.check, f"{step.thread} makes an spte while its range is being invalidated", (step.n,))
        return None


class CountIsBalanced(Monitor):
    """mmu_notifier_count is never negative."""

    check = "N-I2"

    def __init__(self, mmu: Mmu) -> None:
        super().__init__([mmu.count])

    def on_step(self, step: Step) -> Violation | None:
        """Judge a step on the count."""
        return Violation(self.check, f"mmu_notifier_count = {step.after}", (step.n,)) if step.after < 0 else None


class MmuNotifier(Scenario):
    """One guest page; a vCPU maps or uses it, the host takes it away."""

    name = "mmu_notifier"
    patch = "e930bffe95e1 KVM: Synchronize guest physical memory map to host virtual memory map (2008)"
    functions = kvm.FUNCTIONS
    vcpus = 1
    max_vcpus = 4
    max_steps = 400
    setups = {
        "munmap": Setup("a vCPU faults while its address is unmapped and mapped again: invalidate_range_start() and _end()"),
        "reclaim": Setup("a vCPU faults while the page is swapped out: invalidate_page()"),
        "prefetch": Setup("an emulated write to a guest page table maps the page speculatively while it is migrated"),
        "huge": Setup("reclaim of a huge page at gfn 0x200, in a slot that begins at gfn 0x100"),
        "twice": Setup("munmap() and reclaim take the same page away; a vCPU is in the guest and has it in its TLB"),
        "aging": Setup("clear_flush_young(), then reclaim, while a vCPU enters the guest and uses the page (EPT)"),
        "ksm": Setup("KSM replaces the page: change_pte(), while a vCPU enters the guest and uses the page"),
        "invlpg": Setup("another vCPU's INVLPG drops the spte while the page is swapped out; a vCPU has it in its TLB"),
        "elsewhere": Setup("a vCPU faults while other addresses are invalidated, without end"),
        "new_slot": Setup("munmap() while the VMM adds the memory slot of the address; no vCPU runs"),
    }
    #: to 5.11, an invalidation anywhere makes every fault wait
    claims = {"elsewhere": Sometimes}
    variants = {
        "before": Variant("2.6.26: no notifier, each spte pins its page", BEFORE, TAKEN_AWAY),
        "before_no_refs": Variant("before, if sptes held no references: use after free", {**BEFORE, **NO_REFS}, TAKEN_AWAY),
        "after": Variant("the patch as committed: TLBs are flushed once mmu_lock is released", AFTER,
                         sometimes("huge", "twice", "aging", "invlpg")),
        "after_no_refs": Variant("after, and sptes hold no references (acb66dd051d0)", {**AFTER, **NO_REFS},
                                 sometimes("huge", "twice", "aging", "invlpg")),
        "fixed": Variant("3.8: flush inside mmu_lock, right index, EPT aging (the machine as it is)"),
        "ept_always_old": Variant("534e38b447df: on EPT every page is old", later.EPT_ALWAYS_OLD),
        "tlbs_dirty": Variant("a4ee1ca4a36e: INVLPG leaves its flush to invalidate_page()", later.TLBS_DIRTY),
        "hva_range": Variant("4a42d848db95: only an invalidation of its own address makes a fault wait", later.HVA_RANGE, FREE),
        "active_count": Variant("52ac8b358b0c: no mmu_lock without a slot; slots wait for invalidations", later.ACTIVE),
        "lockless": Variant("a355aa54f1d2: the fault asks under the reverse map's lock (PowerPC)", later.LOCKLESS),
        "lockless_no_wmb": Variant("lockless, no smp_wmb() in range_end: hidden by x86", {**later.LOCKLESS, later.END: no_wmb},
                                   {"munmap": {"pso": Sometimes}}),
        "N-M1": Variant("no retry check", {"tdp_page_fault": fault("gup", "lock")},
                        {**sometimes("munmap", "reclaim", "huge"), **FREE}),
        "N-M2": Variant("the sequence is read after the lookup", {"tdp_page_fault": fault("gup", "seq", "lock", "check")},
                        sometimes("munmap", "reclaim", "huge")),
        "N-M3": Variant("the check comes before mmu_lock is taken", {"tdp_page_fault": fault("seq", "gup", "check", "lock")},
                        sometimes("munmap", "reclaim", "huge")),
        "N-M4": Variant("the check looks only at the sequence", {"mmu_notifier_retry": m4_only_seq},
                        {**sometimes("munmap"), **FREE}),
        "N-M5": Variant("the check looks only at the count", {"mmu_notifier_retry": m5_only_count}, sometimes(*FAULTS)),
        "N-M7": Variant("invalidate_page raises the sequence after unlock", {later.PAGE: m7_seq_after_unlock},
                        sometimes("reclaim", "prefetch", "huge")),
        "N-M8": Variant("the callbacks unmap nothing", {"kvm_unmap_rmapp": m8_no_unmap},
                        {**sometimes(*FAULTS, "invlpg"), "twice": Always}),
        "N-M9": Variant("no TLB flush", {"kvm_flush_remote_tlbs": m9_no_flush}, NO_FLUSH),
        "N-M10": Variant("the flush is requested, nobody is interrupted", {"kvm_flush_remote_tlbs": m10_flush_later}, NO_FLUSH),
        "N-M10a": Variant("the flush does not wait for the acknowledgements", {"smp_call_function_many": m10_no_ack},
                          sometimes("twice", "aging", "ksm", "invlpg")),
        "N-M11": Variant("the flush comes after unlock, as in the patch", old.FLUSH_OUTSIDE, sometimes("twice")),
        "N-M12": Variant("the patch, with the flush inside mmu_lock", old.COMMITTED, sometimes("huge", "aging", "invlpg")),
        "N-M13": Variant("range_end: count before sequence, under mmu_lock: harmless", {later.END: m13_count_first}),
        "N-M13l": Variant("the same, and the fault asks without mmu_lock", {**later.LOCKLESS, later.END: m13_count_first},
                          sometimes("munmap")),
        "N-M14": Variant("the check reads the sequence first, under mmu_lock: harmless", {"mmu_notifier_retry": m14_seq_first}),
        "N-M14l": Variant("the same without mmu_lock", {**later.LOCKLESS, "mmu_notifier_retry": m14_seq_first},
                          sometimes("munmap")),
        "N-M16": Variant("mmu_lock is elided without a slot, and slots do not wait", later.ELIDED, sometimes("new_slot")),
        "N-M17": Variant("huge pages are looked up by slot offset, as in the patch", {"handled_index": old.index_by_offset},
                         sometimes("huge")),
        "N-M18": Variant("huge pages are not looked up", {"handled_index": m18_no_huge}, sometimes("huge")),
        "N-M19": Variant("a retry keeps its page reference", {"tdp_page_fault": fault("seq", "gup", "lock", "check", "keep")},
                         sometimes("munmap", "reclaim", "huge")),
        "N-M20": Variant("the speculative path does not check", {"update_pte_retry": old.never_retry}, sometimes("prefetch")),
        "N-M21": Variant("hva_range, but the check ignores the range: faults starve, else harmless", later.RANGE_KEPT),
        "N-M22": Variant("an spte is cleared in two halves, on a 32-bit host", {"drop_spte": m22_two_halves}, sometimes("aging")),
        "N-M23": Variant("sptes hold references, dropped before the spte is cleared, as in the patch: harmless", HOLD),
        "N-M24": Variant("clear_flush_young does not flush; hardware with accessed bits: harmless", {**NPT, **NO_YOUNG_FLUSH}),
        "N-M24e": Variant("clear_flush_young does not flush; EPT, accessed bit emulated", NO_YOUNG_FLUSH, sometimes("aging")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """`vm.size` vCPUs, all with the same page; and who takes it away."""
        body, hosts = WHO[setup]
        mapped = PAGE1 if body in (vcpu_in_guest, vcpu_run) else 0
        mm = HostMM(vm, "mm", pages=3 if setup == "twice" else 2)
        mmu = Mmu(
            vm, "mmu", huge=setup == "huge", base_gfn=0x100, gfn=0x200, mapped=mapped, slot=False if setup == "new_slot" else None
        )
        if mapped and references(vm):
            mm.refs[PAGE1].init = 2
        if body:
            for i in range(vm.size):
                MmuVcpu(vm, i, mmu, mm, body, inside=body is vcpu_in_guest)
        for name, host in hosts.items():
            MmuThread(vm, name, mmu, mm, host, (HVA << 4, HVA << 5) if setup == "elsewhere" else (HVA, HVA + 0x1000))

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        mmu, mm, vcpus = machine(vm)
        found: list[Monitor] = [SpteMapsNoFreePage(mmu, mm), CountIsBalanced(mmu)]
        if vm.setup == "munmap" and vm.calls.kvm_unmap_rmapp is not later.unmap_rmapp_powerpc:
            found.append(NoSpteDuringInvalidation(mmu))
        return [*found, *(TlbMapsNoFreePage(v) for v in vcpus if v.body in (vcpu_in_guest, vcpu_run))]

    def stuck(self, vm: Vm) -> list[Violation]:
        """What is left at the end."""
        return list(left(vm, *machine(vm)))

    def outcome(self, vm: Vm) -> str:
        """What maps what."""
        mmu, mm, vcpus = machine(vm)
        inside = [f", {v.name} in the guest with {spte_name(v.tlb.value)}" for v in vcpus if v.pcpu.cpu.value & IN_GUEST]
        return f"pte: {mm.value_name(mm.pte, mm.pte.value)}, spte: {spte_name(mmu.spte.value)}{''.join(inside)}"


def machine(vm: Vm) -> tuple[Mmu, HostMM, list[MmuVcpu]]:
    """The parts of the machine."""
    mmu: Any = vm.by_name["mmu"]
    mm: Any = vm.by_name["mm"]
    vcpus: Any = vm.vcpus
    return mmu, mm, vcpus


def references(vm: Vm) -> bool:
    """Does an spte hold a reference of its page?"""
    return vm.calls.release_mapped_pfn is old.spte_keeps_reference


def left(vm: Vm, mmu: Mmu, mm: HostMM, vcpus: list[MmuVcpu]) -> Iterator[Violation]:
    """What is wrong at the end."""
    pte, page = mm.pte.value, spte_to_pfn(mmu.spte.value)
    if page not in (0, pte):
        yield Violation("N-I1", f"the guest has page {page}, the process has page {pte}: each writes to its own")
    for v in vcpus:
        if v.pcpu.cpu.value & IN_GUEST and spte_to_pfn(v.tlb.value) not in (0, pte):
            yield Violation(
                "N-I1", f"{v.name} runs with a TLB entry for page {spte_to_pfn(v.tlb.value)}, the process has page {pte}"
            )
        if v.pcpu.cpu.value & CALL_QUEUED:
            yield Violation("N-L1", f"{v.pcpu.name} never answers the flush")
    known = [mmu.rmap, *mmu.rmap_pde]
    if sum(cell.value == "spte" for cell in known) != bool(mmu.spte.value):
        yield Violation("N-I4", f"spte: {spte_name(mmu.spte.value)}, reverse maps: {[cell.value for cell in known]}")
    for pfn, cell in mm.refs.items():
        wanted = (pte == pfn) + (page == pfn and references(vm))
        if cell.value != (UNUSED if pfn > pte else wanted):
            yield Violation("references", f"page {pfn} has {cell.value} references, {wanted} are accounted for")
    if mmu.count.value and vm.setup != "elsewhere":
        yield Violation("N-I2", f"mmu_notifier_count = {mmu.count.value} at the end")
    for word in (mmu.mmu_lock_word, mmu.rmap_lock_word, mm.ptl_word):
        if word.value:
            yield Violation("N-L2", f"{word.value} holds {word.name} for ever")
