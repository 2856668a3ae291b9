"""A page that the host takes away while vCPUs map it (KVM patch e930bffe95e1, July 2008).

KVM maps guest memory with translations of its own, sptes, which the host's memory management does not see.  Before the patch
each spte kept a reference: the host could not swap such a page out (it is pinned), and after munmap() and mmap() the guest
went on with the old page while the process had a new one.  Without the references it is a use after free.

The patch lets the host call KVM.  A fault reads mmu_notifier_seq, asks the host for the page, and maps it under mmu_lock only if
no invalidation is under way (mmu_notifier_count) or has ended since (the sequence).  "after" is the patch as committed; it
flushes TLBs once it has released mmu_lock, so of two that take the same page away the second finds no spte, and the page is freed
while a TLB still has it.  The flush that it calls leaves out a vCPU which another flush has asked and does not wait for that
one.  It looks for huge pages at gfn_offset / 512, which is another huge page's index if the slot is not aligned; it clears bit 5
of an EPT entry as "accessed", where it belongs to the memory type; it registers before mmu_lock is initialised, and has no
release().  "fixed" is 3.8: all of that repaired, and tlbs_dirty for sptes that KVM drops without a flush.

Modelled: the page-fault path, the speculative path of emulated pte writes, reverse maps, the callbacks, requests and IPIs with
acknowledgements, reference counts and PageDirty, reclaim, munmap, migration, KSM, aging, and how the VM and its mm come and go.
A range is one page: that a long one is unmapped page by page under one mmu_lock is a matter of time, not of order.
Left out: the order of loads, shadow pages and their roots but for "room", SRCU around the slots.  The gfn_to_pfn cache is a
scenario of its own.

What we read in the sources, and what follows from it in this model: N-M23 is rmap_remove() of 2.6.27, which drops the page's
reference before the spte is cleared; the host holds one of its own until the callback returns.  N-M24 costs only accuracy where
the spte stays; where the accessed bit is emulated by unmapping (6316e1c8c6af) it leaves a TLB entry that no later callback knows
of.  smp_wmb() in range_end is for those who ask without mmu_lock: mmu_notifier_retry()'s comment in 3.8 names PowerPC, and its
kvmppc_do_h_enter() asks under the lock of a reverse map.  Commits named here were read in the kernel's history up to 2010;
those after it are named from lists and from memory; their code was read in 3.8 and 6.16.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from actors import mmu_2008 as old
from actors import mmu_dirty as dirty
from actors import mmu_later as later
from actors import mmu_lifetime as life
from actors import mmu_mutants as bad
from actors import mmu_notifier as kvm
from actors import shadow_pages as shadow
from actors.actor import Cell
from actors.host_mm import (
    PAGE1,
    UNUSED,
    HostMM,
    age_and_reclaim,
    ksm_replace_page,
    migrate,
    munmap,
    pageout_and_reclaim,
    reclaim,
)
from actors.mmu import (
    EPT_MEMORY_TYPE,
    HVA,
    HVA_B,
    PAGE_B,
    Mmu,
    MmuThread,
    MmuVcpu,
    drop_spte,
    fault_until_mapped,
    kvm_mmu_pte_write,
    release_mapped_pfn,
    spte_name,
    spte_to_pfn,
    vcpu_in_guest,
    vcpu_run,
)
from actors.ops import CALL_QUEUED, IN_GUEST
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, some

Functions = dict[str, Callable[..., Any]]


# One blank line between functions from here to `fmt: on`, so that a version is seen on one screen.
# fmt: off
# ---- the versions: before | after, as committed | fixed is the machine's own
NO_REFS: Functions = {"release_mapped_pfn": release_mapped_pfn, "drop_spte": drop_spte, "unmap_other_pfn": bad.m25_no_flush}
BEFORE: Functions = {**old.REFERENCES, **old.OVERWRITE, **old.NO_NOTIFIER, **life.LIFETIME_BEFORE,
                     "invlpg": old.invlpg_2008, "kvm_flush_remote_tlbs": old.flush_2008}
COMMITTED: Functions = {**old.COMMITTED, **life.LIFETIME_2008}
AFTER: Functions = {**COMMITTED, **old.FLUSH_OUTSIDE}
NPT: Functions = {"make_spte": bad.make_npt_spte, "kvm_age_rmapp": bad.age_accessed_bit, "walk": bad.walk_sets_accessed}
NO_YOUNG_FLUSH: Functions = {"kvm_mmu_notifier_clear_flush_young": bad.m24_young_no_flush}
HOLD: Functions = {**old.REFERENCES, "kvm_mmu_notifier_change_pte": old.change_pte_2008}  # change_pte() came after them

# ---- who runs
async def set_user_memory_region(me: Any) -> None:
    """The VMM adds the slot in which the address is."""
    await me.vm.calls.install_memslot(me)

async def guest_invlpg(me: Any) -> None:
    """Another vCPU's exit for INVLPG."""
    await me.vm.calls.invlpg(me)

async def guest_load_cr3(me: Any) -> None:
    """Another vCPU loads CR3 once the guest has changed its page table.  [mmu.c mmu_sync_roots]"""
    await me.vm.calls.sync_page(me)

WHO: dict[str, tuple[Any, dict[str, Any]]] = {
    "munmap": (fault_until_mapped, {"munmap": munmap}),
    "reclaim": (fault_until_mapped, {"kswapd": reclaim}),
    "prefetch": (kvm_mmu_pte_write, {"migration": migrate}),
    "huge": (fault_until_mapped, {"kswapd": reclaim}),
    "twice": (vcpu_in_guest, {"munmap": munmap, "kswapd": reclaim}),
    "aging": (vcpu_run, {"kswapd": age_and_reclaim}),
    "ksm": (vcpu_run, {"ksmd": ksm_replace_page}),
    "invlpg": (vcpu_in_guest, {"invlpg": guest_invlpg, "kswapd": reclaim}),
    "elsewhere": (fault_until_mapped, {"munmap": bad.invalidate_elsewhere}),
    "new_slot": (None, {"munmap": munmap, "userspace": set_user_memory_region}),
    "ranges": (fault_until_mapped, {"munmap": munmap, "munmap2": bad.invalidate_other_range}),
    "sync": (vcpu_in_guest, {"sync": guest_load_cr3, "kswapd": reclaim}),
    "remap": (vcpu_in_guest, {"remap": fault_until_mapped, "kswapd": reclaim}),
    "two_pages": (vcpu_in_guest, {"kswapd": reclaim, "kswapd2": reclaim}),
    "dirty": (dirty.vcpu_stores, {"kswapd": pageout_and_reclaim}),
    "room": (None, {}),
    "create": (None, {"vmm": life.create_and_use, "munmap": life.munmap_of_another_thread}),
    "exit": (None, {"vmm": life.do_exit}),
}
ELSEWHERE = {("elsewhere", "munmap"), ("ranges", "munmap2")}  # who is at other addresses
PAGE_OF_B = {("remap", "remap"), ("two_pages", "kswapd2")}  # who is at HVA_B

def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)

FAULTS = ("munmap", "reclaim", "prefetch", "huge")  # a fault races with whoever takes the page away
FLUSHES = ("twice", "aging", "ksm", "invlpg")  # the page is mapped, and a TLB has it or gets it
FREE: dict[str, Claim] = {"elsewhere": Never}  # no fault waits for what it has nothing to do with
TAKEN_AWAY: dict[str, Claim] = {**sometimes(*FAULTS), **sometimes(*FLUSHES, word=Always), **FREE}
NO_FLUSH: dict[str, Claim] = {**sometimes("twice", "invlpg", "sync", "remap", word=Always), **sometimes("aging", "ksm", "dirty")}
MAPPED_FOR_EVER = sometimes("dirty", "exit", word=Always)
#: variants that are there for some set-ups only
SPECIAL = ("requests_lock", "early", "room_read", "release", "hw_dirty", "N-M25", "N-M26", "N-M27", "N-M28", "N-M29", "N-M30")

INSIDE = (vcpu_in_guest, dirty.vcpu_stores)  # who is in the guest from the beginning
RANGES = ("munmap", "twice", "elsewhere", "ranges")  # where there are ranges, and sptes

def others(variants: Mapping[str, Variant]) -> tuple[str, ...]:
    """The variants that every set-up is searched for."""
    return tuple(name for name in variants if name not in SPECIAL)
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

    def __init__(self, mmu: Mmu, far: frozenset[str]) -> None:
        super().__init__([mmu.spte, mmu.count], ranges=0)
        self.mmu, self.far = mmu, far  # those whose ranges the page is not in

    def on_step(self, step: Step) -> Violation | None:
        """Count the ranges that the page is in; judge a step on the spte."""
        if step.cell is self.mmu.count:
            if step.writes and step.thread not in self.far:
                self.ghost["ranges"] += step.after - step.before
        elif step.writes and step.after and not step.before and self.ghost["ranges"]:
            return Violation(self.check, f"{step.thread} makes an spte while its range is being invalidated", (step.n,))
        return None


class InodeOutlivesItsPages(Monitor):
    """The destructor of a huge page looks at its inode."""

    check = "inode"

    def __init__(self, mm: HostMM, inode: Cell) -> None:
        super().__init__([mm.refs[PAGE1]], reads=[inode])
        self.inode = inode

    def on_step(self, step: Step) -> Violation | None:
        """Judge the end of the last reference."""
        if step.writes and not step.after and not self.inode.value:
            return Violation(self.check, "the last reference of a huge page goes after the inode of its file", (step.n,))
        return None


class CountIsBalanced(Monitor):
    """mmu_notifier_count is never negative, and no change of it is lost."""

    check = "N-I2"

    def __init__(self, mmu: Mmu) -> None:
        super().__init__([mmu.count])

    def on_step(self, step: Step) -> Violation | None:
        """Judge a step on the count."""
        if step.after < 0 or (step.writes and abs(step.after - step.before) != 1):
            return Violation(self.check, f"mmu_notifier_count = {step.after}, was {step.before}", (step.n,))
        return None


class MmuNotifier(Scenario):
    """One guest page; a vCPU maps or uses it, the host takes it away."""

    name = "mmu_notifier"
    patch = "e930bffe95e1 KVM: Synchronize guest physical memory map to host virtual memory map (2008)"
    functions = {**kvm.FUNCTIONS, **life.LIFETIME, "may_store": dirty.may_store, "room_for_tdp_fault": shadow.room_for_tdp_fault}
    vcpus = 1
    max_vcpus = 1024
    max_steps = 400
    #: to 5.11, an invalidation anywhere makes every fault wait
    claims = {"elsewhere": Sometimes}
    variants = {
        "before": Variant("2.6.26: no notifier, each spte pins its page", BEFORE,
                          {**TAKEN_AWAY, **MAPPED_FOR_EVER, **sometimes("ranges")}),
        "before_no_refs": Variant("before, if sptes held no references: use after free", {**BEFORE, **NO_REFS},
                                  {**TAKEN_AWAY, **MAPPED_FOR_EVER}),
        "after": Variant("the patch as committed: TLBs are flushed once mmu_lock is released", AFTER,
                         {**sometimes("huge", "twice", "aging", "invlpg", "remap", "two_pages", "create"), "exit": Always}),
        "requests_lock": Variant("after, and 84261923d3dd: who flushes second waits for the first",
                                 {**AFTER, "kvm_flush_remote_tlbs": old.flush_requests_lock}),
        "release": Variant("after, and 85db06e51442: sptes are dropped before the mm goes",
                           {**AFTER, "kvm_mmu_notifier_release": life.kvm_mmu_notifier_release}),
        "after_no_refs": Variant("after, and sptes hold no references (acb66dd051d0)", {**AFTER, **NO_REFS},
                                 {**sometimes("huge", "twice", "aging", "invlpg"), "exit": Always}),
        "fixed": Variant("3.8: flush inside mmu_lock, right index, EPT aging (the machine as it is)"),
        "ept_always_old": Variant("534e38b447df: on EPT every page is old", later.EPT_ALWAYS_OLD),
        "hva_range": Variant("4a42d848db95: only an invalidation of its own address makes a fault wait", later.HVA_RANGE, FREE),
        "early": Variant("6.16: hva_range, and the question is also asked early, without mmu_lock", later.EARLY, FREE),
        "room_read": Variant("until 47b0c2e4c220: room for shadow pages is made with mmu_lock held for reading",
                             {"room_for_tdp_fault": shadow.make_mmu_pages_available}, sometimes("room")),
        "active_count": Variant("52ac8b358b0c: no mmu_lock without a slot; slots wait for invalidations", later.ACTIVE),
        "lockless": Variant("a355aa54f1d2: the fault asks under the reverse map's lock (PowerPC)", later.LOCKLESS),
        "lockless_no_wmb": Variant("lockless, no smp_wmb() in range_end: hidden by x86",
                                   {**later.LOCKLESS, later.END: bad.no_wmb}, {"munmap": {"pso": Sometimes}}),
        "N-M1": Variant("no retry check", {"tdp_page_fault": bad.fault("gup", "lock")},
                        {**sometimes("munmap", "reclaim", "huge", "ranges"), **FREE}),
        "N-M2": Variant("the sequence is read after the lookup", {"tdp_page_fault": bad.fault("gup", "seq", "lock", "check")},
                        sometimes("munmap", "reclaim", "huge")),
        "N-M3": Variant("the check comes before mmu_lock is taken", {"tdp_page_fault": bad.fault("seq", "gup", "check", "lock")},
                        sometimes("munmap", "reclaim", "huge")),
        "N-M4": Variant("the check looks only at the sequence", {"mmu_notifier_retry": bad.m4_only_seq},
                        {**sometimes("munmap", "ranges"), **FREE}),
        "N-M5": Variant("the check looks only at the count", {"mmu_notifier_retry": bad.m5_only_count},
                        sometimes(*FAULTS, "ranges")),
        "N-M7": Variant("invalidate_page raises the sequence after unlock", {later.PAGE: bad.m7_seq_after_unlock},
                        sometimes("reclaim", "prefetch", "huge")),
        "N-M8": Variant("the callbacks unmap nothing", {"kvm_unmap_rmapp": bad.m8_no_unmap},
                        {**sometimes(*FAULTS, "invlpg"), "twice": Always}),
        "N-M9": Variant("no TLB flush", {"kvm_flush_remote_tlbs": bad.m9_no_flush}, NO_FLUSH),
        "N-M10": Variant("the flush is requested, nobody is interrupted",
                         {"kvm_flush_remote_tlbs": bad.m10_flush_later},
                         {**sometimes("twice", "invlpg", word=Always), **sometimes("aging", "ksm", "dirty")}),
        "N-M10a": Variant("the flush does not wait for the acknowledgements", {"smp_call_function_many": bad.m10_no_ack},
                          sometimes("twice", "aging", "ksm", "invlpg", "dirty")),
        "N-M11": Variant("the flush comes after unlock, as in the patch", old.FLUSH_OUTSIDE, sometimes("twice")),
        "N-M12": Variant("the patch, with the flush inside mmu_lock", COMMITTED, sometimes("huge", "aging", "invlpg")),
        "N-M13": Variant("range_end: count before sequence, under mmu_lock: harmless", {later.END: bad.m13_count_first}),
        "N-M13l": Variant("the same, and the fault asks without mmu_lock", {**later.LOCKLESS, later.END: bad.m13_count_first},
                          sometimes("munmap")),
        "N-M14": Variant("the check reads the sequence first, under mmu_lock: harmless",
                         {"mmu_notifier_retry": bad.m14_seq_first}),
        "N-M14l": Variant("the same without mmu_lock", {**later.LOCKLESS, "mmu_notifier_retry": bad.m14_seq_first},
                          sometimes("munmap")),
        "N-M16": Variant("mmu_lock is elided without a slot, and slots do not wait", later.ELIDED, sometimes("new_slot")),
        "N-M17": Variant("huge pages are looked up by slot offset, as in the patch", {"handled_index": old.index_by_offset},
                         sometimes("huge")),
        "N-M18": Variant("huge pages are not looked up", {"handled_index": bad.m18_no_huge}, sometimes("huge")),
        "N-M19": Variant("a retry keeps its page reference", {"tdp_page_fault": bad.fault("seq", "gup", "lock", "check", "keep")},
                         sometimes("munmap", "reclaim", "huge")),
        "N-M20": Variant("the speculative path does not check", {"update_pte_retry": old.never_retry}, sometimes("prefetch")),
        "N-M21": Variant("hva_range, but the check ignores the range: faults starve, else harmless", later.RANGE_KEPT),
        "N-M22": Variant("an spte is cleared in two halves, on a 32-bit host",
                         {"drop_spte": bad.m22_two_halves}, sometimes("aging")),
        "N-M23": Variant("sptes hold references, dropped before the spte is cleared, as in the patch: harmless", HOLD),
        "N-M24": Variant("clear_flush_young does not flush; hardware with accessed bits: harmless", {**NPT, **NO_YOUNG_FLUSH}),
        "N-M24e": Variant("clear_flush_young does not flush; EPT, accessed bit emulated", NO_YOUNG_FLUSH, sometimes("aging")),
        "N-M25": Variant("no flush where an spte is overwritten with another page, as until 91546356d0e5",
                         {"unmap_other_pfn": bad.m25_no_flush}, sometimes("remap")),
        "N-M26": Variant("the callbacks do not look at tlbs_dirty", {"kvm_tlbs_dirty": bad.m26_clean}, sometimes("sync")),
        "N-M27": Variant("a dropped spte does not say that its page is dirty", {"kvm_set_pfn_dirty": dirty.not_transferred},
                         sometimes("dirty", word=Always)),
        "hw_dirty": Variant("the machine on a CPU that keeps dirty bits: harmless", dirty.HARDWARE),
        "N-M28": Variant("hw_dirty, and an spte is read and then cleared",
                         {**dirty.HARDWARE, "drop_spte": dirty.drop_spte_not_atomically}, sometimes("dirty")),
        "N-M29": Variant("sptes hold references, dropped before the page is told that it is dirty: harmless under mmu_lock",
                         {**HOLD, "drop_spte": dirty.drop_spte_reference_first}),
        "N-M30": Variant("hva_range that forgets the range that is under way",
                         {**later.HVA_RANGE, later.START: bad.m30_range_replaced}, {**sometimes("ranges"), **FREE}),
        "N-L2": Variant("the fault looks the page up with mmu_lock held: the host holds its lock and wants mmu_lock",
                        {"tdp_page_fault": bad.fault("seq", "lock", "gup", "check")}, sometimes("munmap", "reclaim", "huge")),
    }  # fmt: skip

    ALL = others(variants)
    setups = {
        "munmap": Setup("a vCPU faults while its address is unmapped and mapped again: invalidate_range_start() and _end()",
                        (*ALL, "early")),
        "reclaim": Setup("a vCPU faults while the page is swapped out: invalidate_page()", ALL),
        "prefetch": Setup("an emulated write to a guest page table maps the page speculatively while it is migrated", ALL),
        "huge": Setup("reclaim of a huge page at gfn 0x200, in a slot that begins at gfn 0x100", ALL),
        "twice": Setup("munmap() and reclaim take the same page away; a vCPU is in the guest and has it in its TLB", ALL),
        "aging": Setup("clear_flush_young(), then reclaim, while a vCPU enters the guest and uses the page (EPT)", ALL),
        "ksm": Setup("KSM replaces the page: change_pte(), while a vCPU enters the guest and uses the page", ALL),
        "invlpg": Setup("another vCPU's INVLPG drops the spte while the page is swapped out; a vCPU has it in its TLB", ALL),
        "elsewhere": Setup("a vCPU faults while other addresses are invalidated, without end",
                           (*ALL, "requests_lock", "release", "hw_dirty", "N-M29")),
        "new_slot": Setup("munmap() while the VMM adds the memory slot of the address; no vCPU runs", ALL),
        "ranges": Setup("as munmap, and other addresses are invalidated at the same time",
                        ("before", "after", "fixed", "hva_range", "N-M1", "N-M4", "N-M5", "N-M13",
                         "N-M30")),
        "sync": Setup("another vCPU finds that the guest has changed a pte, and drops the spte; then the page is swapped out",
                      ("fixed", "N-M9", "N-M26")),
        "remap": Setup("the same, but another page is mapped with that spte", ("after", "fixed", "N-M9", "N-M25")),
        "two_pages": Setup("two pages are swapped out at once; a vCPU has one of them in its TLB",
                           ("after", "requests_lock", "fixed", "N-M12")),
        "dirty": Setup("the guest stores to the page while it is written to swap and freed: is the store lost?",
                       ("before", "before_no_refs", "after", "fixed", "N-M9", "N-M10", "N-M10a", "N-M27", "hw_dirty", "N-M28",
                        "N-M29")),
        "room": Setup("two vCPUs fault in the TDP MMU when no more shadow pages may be allocated", ("fixed", "room_read")),
        "create": Setup("another thread of the VMM unmaps something while it creates the VM", ("before", "after", "fixed")),
        "exit": Setup("the VMM exits: its memory goes, a huge page of hugetlbfs, and then the VM",
                      ("before", "before_no_refs", "after", "after_no_refs", "release", "fixed")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """`vm.size` vCPUs, all with the same page; and who takes it away."""
        body, hosts = WHO[setup]
        mapped = PAGE1 if body in INSIDE or body is vcpu_run or setup == "exit" else 0
        mm = HostMM(vm, "mm", pages=3 if setup == "twice" else 2, written=setup == "dirty")
        mmu = Mmu(
            vm, "mmu", huge=setup == "huge", base_gfn=0x100, gfn=0x200, mapped=mapped,
            slot=False if setup == "new_slot" else None, other={"remap": "spte", "two_pages": "spte_b"}.get(setup, ""),
        )  # fmt: skip
        if mapped and references(vm):
            mm.refs[PAGE1].init = 2
        other = HostMM(vm, "mm_b", first=PAGE_B) if mmu.rmap_b is not None else None
        if other is not None:
            mm.refs = other.refs = {**mm.refs, **other.refs}
            if mmu.spte_b is not None and references(vm):
                mm.refs[PAGE_B].init = 2
        if body:
            for i in range(vm.size):
                vcpu = MmuVcpu(vm, i, mmu, mm, body, inside=body in INSIDE)
                if mmu.spte_b is not None:
                    vcpu.tlb.init = mmu.spte_b.init
        if setup == "room":
            faults = max(2, vm.size)
            pages = shadow.ShadowPages(vm, "shadow", faults)
            for i in range(faults):
                shadow.TdpFault(vm, i, pages)
        if setup in ("create", "exit"):
            notifier, inode = mm.cell("mmu_notifier", setup == "exit"), mm.cell("hugetlbfs_inode", True)
            if setup == "create":
                mmu.use_lock(life.TicketSpinlock, free=0)
            for name, host in hosts.items():
                life.Lifetime(vm, name, mmu, mm, host, notifier=notifier, inode=inode)
            return
        for name, host in hosts.items():
            hva = (HVA << 4, HVA << 5) if (setup, name) in ELSEWHERE else (HVA, HVA + 0x1000)
            if other is not None and (setup, name) in PAGE_OF_B:
                MmuThread(vm, name, mmu, other, host, (HVA_B, HVA_B + 0x1000))
            else:
                MmuThread(vm, name, mmu, mm, host, hva)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        mmu, mm, vcpus = machine(vm)
        found: list[Monitor] = [SpteMapsNoFreePage(mmu, mm), CountIsBalanced(mmu)]
        if vm.setup in RANGES and vm.calls.kvm_unmap_rmapp is not later.unmap_rmapp_powerpc:
            found.append(NoSpteDuringInvalidation(mmu, frozenset(name for setup, name in ELSEWHERE if setup == vm.setup)))
        if vm.setup == "exit":
            vmm: Any = vm.by_name["vmm"]
            found.append(InodeOutlivesItsPages(mm, vmm.inode))
        return [*found, *(TlbMapsNoFreePage(v) for v in vcpus if v.body in (vcpu_in_guest, vcpu_run))]

    def stuck(self, vm: Vm) -> list[Violation]:
        """What is left at the end."""
        return list(left(vm, *machine(vm)))

    def outcome(self, vm: Vm) -> str:
        """What maps what."""
        mmu, mm, vcpus = machine(vm)
        inside = [
            f", {some(who)} in the guest with {spte_name(spte)}"
            for spte, who in by_tlb(v for v in vcpus if v.pcpu.cpu.value & IN_GUEST).items()
        ]
        return f"pte: {mm.value_name(mm.pte, mm.pte.value)}, spte: {spte_name(mmu.spte.value)}{''.join(inside)}"


def machine(vm: Vm) -> tuple[Mmu, HostMM, list[MmuVcpu]]:
    """The parts of the machine."""
    mmu: Any = vm.by_name["mmu"]
    mm: Any = vm.by_name["mm"]
    vcpus: Any = vm.vcpus
    return mmu, mm, vcpus


def by_tlb(vcpus: Iterable[MmuVcpu]) -> dict[int, list[str]]:
    """The names of vCPUs, by the translation that is in their TLBs."""
    found: dict[int, list[str]] = {}
    for v in vcpus:
        found.setdefault(v.tlb.value, []).append(v.name)
    return found


def references(vm: Vm) -> bool:
    """Does an spte hold a reference of its page?"""
    return vm.calls.release_mapped_pfn is old.spte_keeps_reference


def left(vm: Vm, mmu: Mmu, mm: HostMM, vcpus: list[MmuVcpu]) -> Iterator[Violation]:
    """What is wrong at the end."""
    other: Any = vm.by_name.get("mm_b", mm)
    ptes = (mm.pte.value, other.pte.value)
    sptes = [cell for cell in (mmu.spte, mmu.spte_b) if cell is not None]
    pages = [spte_to_pfn(cell.value) for cell in sptes]
    for page in pages:
        if page not in (0, *ptes):
            yield Violation("N-I1", f"the guest has page {page}, the process has page {ptes[0]}: each writes to its own")
    inside = (v for v in vcpus if v.pcpu.cpu.value & IN_GUEST and v.body in (vcpu_in_guest, vcpu_run))
    for entry, who in by_tlb(inside).items():
        page = spte_to_pfn(entry)
        if page not in (0, *ptes):
            verb = "runs with a TLB entry" if len(who) == 1 else "run with TLB entries"
            yield Violation("N-I1", f"{some(who)} {verb} for page {page}, the process has page {ptes[0]}")
    if silent := [v.pcpu.name for v in vcpus if v.pcpu.cpu.value & CALL_QUEUED]:
        yield Violation("N-L1", f"{some(silent)} never answer{'s' * (len(silent) == 1)} the flush")
    known = [cell for cell in (mmu.rmap, *mmu.rmap_pde, mmu.rmap_b) if cell is not None]
    for spte in sptes:
        if sum(mmu.spte_in(cell) is spte and cell.value == "spte" for cell in known) != bool(spte.value):
            yield Violation("N-I4", f"{spte.name}: {spte_name(spte.value)}, reverse maps: {[cell.value for cell in known]}")
    for pfn, cell in mm.refs.items():
        pte = ptes[pfn >= PAGE_B]
        if not pte and not (vm.setup == "exit" and pfn == PAGE1):
            continue  # nobody has mapped it again: who was to do so is stuck, or has gone
        wanted = (pte == pfn) + (pfn in pages and references(vm))
        if cell.value != (UNUSED if 0 < pte < pfn else wanted):
            yield Violation("references", f"page {pfn} has {cell.value} references, {wanted} are accounted for")
    if mm.contents is not None and mm.swap is not None and mm.pte.value != PAGE1 and mm.contents.value != mm.swap.value:
        yield Violation("N-I5", "page 1 was freed, and what the guest stored to it is not in swap")
    room: Any = vm.by_name.get("shadow")
    for cell in room.freed.values() if room else ():
        if cell.value > 1:
            yield Violation("double free", f"{cell.name}: a shadow page was zapped {cell.value} times")
    if mmu.count.value and vm.setup != "elsewhere":
        yield Violation("N-I2", f"mmu_notifier_count = {mmu.count.value} at the end")
    for word in (mmu.mmu_lock_word, mmu.rmap_lock_word, mmu.requests_word, mm.ptl_word, mm.mmap_sem_word):
        if word.value and not (vm.setup == "create" and life.is_free(word.value)):
            yield Violation("N-L2", f"{word.name} is never free again: {mmu.value_name(word, word.value)}")
