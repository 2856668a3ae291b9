"""A page that KVM itself maps, and the host takes away (KVM patches 93984f19e7bc and 58cd407ca4c6, 2022).

A gfn_to_pfn_cache keeps a page of guest memory mapped in the kernel: Xen's shared info, the steal time.  The mmu notifier clears
gpc->valid, and who finds the cache invalid refreshes it: looks the page up, asks whether it was taken away meanwhile, and says
valid.  Until 2022 it said valid first and asked for mmu_notifier_count, which the notifier raises only after it has dealt
with the caches: an invalidation that has passed the cache is then neither seen nor sees.  58cd407ca4c6 asks for
mn_active_invalidate_count, raised before; 93984f19e7bc lets one refresh run at a time.

"after" is the code of 6.16, which has both.  In our reading it still has a gap: range_end raises the sequence only if some
memory slot has the address, and a cache that was set up by host address need not be in one ("no_slot").

Left out: several caches, slots and addresses that change under the cache, activation and deactivation, the order of loads.
"""

from collections.abc import Iterator
from typing import Any

from actors import mmu_later as later
from actors import mmu_notifier as kvm
from actors import pfn_cache as gpc
from actors import pfn_cache_2022 as old
from actors.host_mm import UNUSED, HostMM, munmap
from actors.mmu import Mmu
from actors.mmu_mutants import invalidate_elsewhere, no_wmb
from actors.ops import READ_ONCE, WRITE_ONCE, smp_rmb
from actors.pfn_cache import CacheInvalidator, CacheUser, PfnCache
from racevisor import Always, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm

# One blank line between functions from here to `fmt: on`, so that a version is seen on one screen.
# fmt: off
BEFORE = {"__kvm_gpc_refresh": old.refresh_2022, "kvm_gpc_refresh": old.refresh_unserialized}
MUTEX = {"__kvm_gpc_refresh": old.refresh_2022}

# ---- mutants
async def m1_count(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry_cache() that looks at mmu_invalidate_in_progress, as faults do."""
    if await READ_ONCE(me.mmu.count):
        return True
    await smp_rmb()
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)

async def m3_late_seq(vcpu: Any) -> None:
    """hva_to_pfn_retry(): the sequence is read after the lookup."""
    cache: PfnCache = vcpu.gpc
    await WRITE_ONCE(cache.valid, False)
    while True:
        vcpu.checkpoint("hva_to_pfn_retry")
        await gpc.look_up(vcpu)
        mmu_seq = await READ_ONCE(vcpu.mmu.seq)
        await cache.lock.write_lock()
        if not await vcpu.vm.calls.mmu_notifier_retry_cache(vcpu, mmu_seq):
            break
    await WRITE_ONCE(cache.valid, True)
    await WRITE_ONCE(cache.pfn, vcpu.new_pfn)
    await WRITE_ONCE(cache.khva, vcpu.new_khva)
    await vcpu.mm.put_page(vcpu.new_pfn)

async def m4_seq_first(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry_cache(): the sequence, then the count."""
    if await READ_ONCE(me.mmu.seq) != mmu_seq:
        return True
    return bool(await READ_ONCE(me.mmu.active))

async def m5_cache_first(me: Any) -> None:
    """invalidate_range_start(): the cache before the count."""
    await me.vm.calls.gfn_to_pfn_cache_invalidate_start(me)
    await later.active_add(me, 1)
    if await later.slot_there(me):
        await later.range_start_5_12(me)

async def m6_no_invalidate(me: Any) -> None:
    """gfn_to_pfn_cache_invalidate_start(): does nothing."""

async def m7_only_active(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry_cache() that does not look at the sequence."""
    return bool(await READ_ONCE(me.mmu.active))

async def end_without_wmb(me: Any) -> None:
    """invalidate_range_end() without smp_wmb(): what comes next takes a lock."""
    if await later.slot_there(me):
        await no_wmb(me)
    await later.active_add(me, -1)

async def end_always_counts(me: Any) -> None:
    """invalidate_range_end() that raises the sequence whether there is a slot or not: ours, no kernel's."""
    if await later.slot_there(me):
        await kvm.kvm_mmu_notifier_invalidate_range_end(me)
    else:
        async with me.mmu.mmu_lock.held_by(me):
            await kvm.seq_inc(me)
    await later.active_add(me, -1)
# fmt: on


class CacheMapsNoFreePage(Monitor):
    """Who uses the cache uses a mapping that is there, of a page that the host has not freed."""

    check = "N-I1"

    def __init__(self, cache: PfnCache, mm: HostMM) -> None:
        super().__init__(cache.memory.values(), reads=[*cache.maps.values(), *mm.refs.values()])
        self.cache, self.mm = cache, mm
        self.pages = {cell: page for page, cell in cache.memory.items()}

    def on_step(self, step: Step) -> Violation | None:
        """Judge an access through the cache."""
        assert step.cell is not None
        page = self.pages[step.cell]
        if not page:
            return Violation("NULL", f"{step.thread} finds the cache valid, and its address is NULL", (step.n,))
        if not self.cache.maps[page].value:
            return Violation("unmapped", f"{step.thread} uses the mapping of page {page}, which has been removed", (step.n,))
        if not self.mm.refs[page].value:
            return Violation(self.check, f"{step.thread} uses page {page}, which the host has freed", (step.n,))
        return None


class PfnCacheRaces(Scenario):
    """One cache of one page; vCPUs use it, the host takes the page away."""

    name = "pfn_cache"
    patch = "58cd407ca4c6 KVM: Fix multiple races in gfn=>pfn cache refresh (2022)"
    functions = {**kvm.FUNCTIONS, **gpc.FUNCTIONS}
    vcpus = 1
    max_vcpus = 1024
    max_steps = 400
    live = "first"
    setups = {
        "munmap": Setup("a vCPU uses the cache while its page is unmapped and mapped again"),
        "first": Setup("two vCPUs find the cache invalid, and nobody takes the page away", ("before", "mutex", "after")),
        "two": Setup("two vCPUs use the cache while its page is unmapped and mapped again", ("before", "after", "P-M2")),
        "elsewhere": Setup(
            "a vCPU refreshes while other addresses are invalidated, without end", ("before", "after", "always_counts", "P-M8")
        ),
        "no_slot": Setup("the cache's host address is in no memory slot", ("before", "after", "always_counts")),
    }
    #: any invalidation anywhere makes a refresh wait; a range outside of all slots leaves no trace but in the caches
    claims = {"elsewhere": Sometimes, "no_slot": Sometimes}
    variants = {
        "before": Variant("5.17: valid before it is; the count of the faults; refreshes that meet", BEFORE,
                          {"munmap": Sometimes, "first": Sometimes, "two": Sometimes, "elsewhere": Never}),
        "mutex": Variant("93984f19e7bc alone: one refresh at a time", MUTEX,
                         {"munmap": Sometimes, "first": Sometimes, "elsewhere": Never}),
        "after": Variant("58cd407ca4c6 too, as in 6.16 (the machine as it is)"),
        "always_counts": Variant("range_end raises the sequence without a slot too: not in any kernel",
                                 {later.END: end_always_counts}, {"no_slot": Never}),
        "P-M1": Variant("the refresh asks for the count that faults ask for", {"mmu_notifier_retry_cache": m1_count},
                        {"munmap": Sometimes}),
        "P-M2": Variant("no mutex", {"kvm_gpc_refresh": old.refresh_unserialized}, {"two": Sometimes}),
        "P-M3": Variant("the sequence is read after the lookup", {"hva_to_pfn_retry": m3_late_seq},
                        {"munmap": Sometimes}),
        "P-M4": Variant("the sequence is asked before the count", {"mmu_notifier_retry_cache": m4_seq_first},
                        {"munmap": Sometimes}),
        "P-M5": Variant("the cache is invalidated before the count is raised", {later.START: m5_cache_first},
                        {"munmap": Sometimes}),
        "P-M6": Variant("the cache is not invalidated", {"gfn_to_pfn_cache_invalidate_start": m6_no_invalidate},
                        {"munmap": Always}),  # we had said Sometimes: but who does not look it up again ends with the old page
        "P-M7": Variant("the refresh asks only for the count", {"mmu_notifier_retry_cache": m7_only_active},
                        {"munmap": Sometimes}),
        "P-M8": Variant("no smp_wmb() in range_end: harmless, a lock is taken before the count is lowered",
                        {later.END: end_without_wmb}),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """The cache maps page 1; it has just been invalidated where that saves a search of how it came to be."""
        users = max(2, vm.size) if setup in ("first", "two") else vm.size
        cache, mm = PfnCache(vm, "gpc", users=users), HostMM(vm, "mm")
        mmu = Mmu(vm, "mmu", slot=False if setup == "no_slot" else None)
        if setup in ("first", "elsewhere") or vm.size > self.vcpus:  # a valid one keeps many busy for no more than five steps
            cache.valid.init = cache.valid.value = False
        for i in range(users):
            CacheUser(vm, i, cache, mmu, mm)
        far = setup == "elsewhere"
        if setup != "first":
            CacheInvalidator(vm, "munmap", cache, mmu, mm, invalidate_elsewhere if far else munmap, far=far)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        cache, mm, _mmu = machine(vm)
        return [CacheMapsNoFreePage(cache, mm)]

    def stuck(self, vm: Vm) -> list[Violation]:
        """What is left at the end."""
        return list(left(vm, *machine(vm)))

    def outcome(self, vm: Vm) -> str:
        """What the cache maps."""
        cache, mm, _mmu = machine(vm)
        said = cache.value_name(cache.khva, cache.khva.value) if cache.valid.value else "invalid"
        return f"pte: {mm.value_name(mm.pte, mm.pte.value)}, cache: {said}"


def machine(vm: Vm) -> tuple[PfnCache, HostMM, Mmu]:
    """The parts of the machine."""
    cache: Any = vm.by_name["gpc"]
    mm: Any = vm.by_name["mm"]
    mmu: Any = vm.by_name["mmu"]
    return cache, mm, mmu


def left(vm: Vm, cache: PfnCache, mm: HostMM, mmu: Mmu) -> Iterator[Violation]:
    """What is wrong at the end."""
    pfn, khva, pte = cache.pfn.value, cache.khva.value, mm.pte.value
    if cache.valid.value and pfn != pte:
        yield Violation("N-I1", f"the cache is valid for page {pfn}, the process has page {pte}")
    if pfn != khva:
        yield Violation("N-I4", f"the cache is for page {pfn} and maps page {khva}")
    for page, maps in cache.maps.items():
        if maps.value != (page == khva):
            yield Violation("references", f"page {page} is mapped {maps.value} times, and {int(page == khva)} are accounted for")
    for page, refs in mm.refs.items():
        wanted = UNUSED if page > pte else int(page == pte)
        if refs.value != wanted:
            yield Violation("references", f"page {page} has {refs.value} references, {wanted} are accounted for")
    if (mmu.count.value or mmu.active.value) and vm.setup != "elsewhere":
        yield Violation("N-I2", "an invalidation is counted that has ended")
    for word in (mmu.mmu_lock_word, mmu.mn_invalidate_word, cache.lock_word, cache.refresh_word, mm.ptl_word):
        if word.value:
            yield Violation("N-L2", f"somebody holds {word.name} for ever")
