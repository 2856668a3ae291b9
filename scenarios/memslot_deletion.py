"""Guest memory is taken away while vCPUs fault on it (KVM patch bc6678a33d9b, December 2009).

A memory slot says which guest frames are which memory of the VMM.  Up to 2.6.33 whoever changes slots holds slots_lock for
writing, and every vCPU that leaves the guest waits ("before").  The patch lets vCPUs and mmu notifiers read the slots under
SRCU.  Then one step is not enough to delete a slot, in whichever order (M-M5, M-M6): flush the shadow pages first, and a vCPU
that still sees the slot maps a page again; publish first, and the teardown finds no slot for what it tears down.  So a slot
becomes INVALID first: nobody may map it any more, but it can be found.  After a grace period its mappings go, then the slot
("after").

What the patch left open, and every mutant of it has: a slot that moves is published in one step ("move_invalid", 3.8, repairs
it; "flush_moved" flushes too late, and finds no slot for what it tears down); an error between the two steps leaves the slot
INVALID for ever ("today" puts it back); GET_DIRTY_LOG of the same series loses pages ("swap_first", edde99ce0529; "protect", 3.8,
swaps no slots at all); odd requests of userspace are not refused ("odd").  With the patch alone vCPUs still take slots_lock
("patch_alone"); f656ce0185ca of the same day switched them over, and "after" has it.  TLBs must be flushed before mmu_lock is
dropped, as kvm_mmu_zap_page() does in 2.6.34: else a notifier finds nothing mapped, does not flush, and the page is freed under
the guest ("tlb_late").

kvm_arch_commit_memory_region() write-protects under mmu_lock whatever was asked for, after the new array is published.  That
saves two mutants: who flushes before logging begins (M-M14) loses no page unless the write protection comes early as well
("protect_early"), and a notifier without SRCU (M-M9) is waited for by mmu_lock, but for GET_DIRTY_LOG, which has no commit.

Modelled: SRCU with its flips and its wait for every CPU; slot arrays, rmaps and bitmaps that are freed; faults with the
notifiers' retry; a notifier; shadow roots; the dirty log, with the bitmap that says which slots a shadow page maps.  The teardown
takes the mappings of all slots, which costs faults and nothing else.  Left out: large pages, aliases, mmap_sem, the reload of
roots, more than one frame of a slot being mapped; a TLB flush is one step.  memslot_id() names the last slot if none has the
frame, but only a move brings a vCPU to ask it for such a frame, and then the stale mapping itself is what is found ("move").
The MMU audit of that time does not compile, and ia64 unlocks in the order in which it locked: neither is an interleaving.
Who else relies on slots: memslot_users.  What vCPUs remember of frames that have no slot: memslot_generations.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, ClassVar

from actors.memslots import (
    FREED,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMSLOT_INVALID,
    WRITER,
    Memslots,
    Region,
    Slot,
    Task,
    Updater,
    region,
    synchronize_memslots_slowly,
)
from actors.ops import WRITE_ONCE, choose, xchg
from actors.slot_mutants import (
    checks_early,
    m1_no_first_wait,
    m2_no_second_wait,
    m3_flush_first,
    m4_free_early,
    m5_publish_then_flush,
    m6_flush_then_publish,
    m11_sees_invalid,
    m12_hides_invalid,
    m14_flush_before_logging,
    m17_slots_lock_inside,
    m18_halts_inside,
    m21_copies_early,
    never_begins,
    protect_early,
)
from actors.slot_readers import (
    Notifier,
    ShadowMmu,
    VcpuTask,
    disk,
    flush_shadow_tlb_late,
    machine,
    mmu_alloc_roots,
    no_read_lock,
    no_read_unlock,
    skips_invalid,
    slots_down_write,
    slots_up_write,
    try_to_unmap,
    vcpu_down_read,
    vcpu_faults,
    vcpu_reads_and_halts,
    vcpu_up_read,
    vcpu_writes,
)
from actors.slot_versions import (
    FUNCTIONS,
    check_region_today,
    commit_flushes_moved,
    get_dirty_log_before,
    get_dirty_log_protect,
    get_dirty_log_swap_first,
    kvm_vm_ioctl_get_dirty_log,
    mark_by_set_bit,
    moves_or_deletes,
    nothing,
    set_memslot_before,
    set_memslot_today,
    synchronize_flip_only,
)
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike, some

# ---- versions; the machine as it is (actors.memslots) is "after"
RWSEM: dict[str, Callable[..., Any]] = {
    "slots_lock": slots_down_write, "slots_unlock": slots_up_write,
    "vcpu_read_lock": vcpu_down_read, "vcpu_read_unlock": vcpu_up_read,
}  # fmt: skip
BEFORE: dict[str, Callable[..., Any]] = {
    **RWSEM, "notifier_read_lock": no_read_lock, "notifier_read_unlock": no_read_unlock,
    "kvm_set_memslot": set_memslot_before, "get_dirty_log": get_dirty_log_before,
}  # fmt: skip
TODAY: dict[str, Callable[..., Any]] = {
    "check_region": check_region_today, "kvm_set_memslot": set_memslot_today, "get_dirty_log": get_dirty_log_protect,
    "wants_invalid_step": moves_or_deletes, "mark_in_bitmap": mark_by_set_bit,
}  # fmt: skip


# fmt: off
# ---- who runs
DELETE, CREATE, MOVE, LOG = region(0, 0, 0), region(0, 0, 1), region(0, 1, 1), region(0, 0, 1, 0, KVM_MEM_LOG_DIRTY_PAGES)
ODD = {
    "a slot that is INVALID": region(1, 3, 1, 2, KVM_MEMSLOT_INVALID),
    "another hva": region(0, 0, 2, 1),
    "to delete no slot": region(1, 3, 0),
    "to delete a slot, at a gfn of another": region(2, 1, 0),
}

def asks(mem: Region) -> Callable[[Updater], Any]:
    """Userspace makes this one request."""

    async def body(me: Updater) -> str:
        me.r = await me.vm.calls.kvm_set_memory_region(me, mem)
        return f"r = {me.r}"

    return body

async def deletes_then_interrupts(me: Updater) -> str:
    """Userspace deletes the slot; when that is done every vCPU gets an interrupt."""
    end: str = await asks(DELETE)(me)
    for vcpu in me.vm.actors:
        if isinstance(vcpu, VcpuTask):
            await xchg(vcpu.irq, "pending")
    return end

async def gets_dirty_log(me: Updater) -> str:
    """Userspace asks which pages are dirty."""
    me.r = await kvm_vm_ioctl_get_dirty_log(me, 0)
    return f"r = {me.r}"

async def asks_oddly(me: Updater) -> str:
    """One of several requests that should be refused, or be no work."""
    request: str = [*ODD][await choose(len(ODD))]
    await asks(ODD[request])(me)
    return request

async def in_guest(vcpu: VcpuTask) -> str:
    """The guest runs and does not exit."""
    return "runs"

M14: dict[str, Callable[..., Any]] = {"kvm_set_memslot": m14_flush_before_logging, "logging_begins": never_begins}
PROTECT_EARLY: dict[str, Callable[..., Any]] = {**M14, "kvm_set_memslot": protect_early, "kvm_arch_commit_memory_region": nothing}
#: the variants in which GET_DIRTY_LOG, or who reads slots meanwhile, is another than in "after"
LOGS = ("before", "patch_alone", "after", "swap_first", "protect", "today", "M-M7", "M-M9", "M-M19", "M-M20", "flip_only")
EXITS = ("fault", "root", "sleeper", "create", "log", "get_log")  # the set-ups in which a vCPU exits and reads slots

def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)
# fmt: on


class NoOops(Monitor):
    """Nobody reads freed or uninitialised memory, or finds no slot for a mapping that is there."""

    check = "oops"

    def on_step(self, step: Step) -> Violation | None:
        check, _, text = str(step.after).partition(": ")
        return Violation(check, f"{step.thread} {text}", (step.n,)) if text else None


class NoStall(Monitor):
    """No vCPU waits while userspace changes slots."""

    check = "stall"

    def on_step(self, step: Step) -> Violation | None:
        if step.thread.startswith("vcpu") and step.op.fn == "" and step.after & WRITER:
            return Violation(self.check, f"{step.thread} has to wait: userspace holds slots_lock for writing", (step.n,))
        return None


class Resolvable(Monitor):
    """What is mapped is in a slot: the array that is published has one for each spte."""

    check = "M-I4"

    def __init__(self, kvm: Memslots, mmu: ShadowMmu) -> None:
        arrays = [cell for array in kvm.arrays.values() for cell in array]
        super().__init__([kvm.memslots, *mmu.sptes.values()], reads=arrays)
        self.kvm, self.mmu = kvm, mmu

    def on_step(self, step: Step) -> Violation | None:
        if step.cell is not self.kvm.memslots:
            if step.writes:
                self.where["spte"] = step.n
        elif step.writes:
            slots = [Slot(*cell.value) for cell in self.kvm.arrays[step.after] if isinstance(cell.value, tuple)]
            for gfn, spte in self.mmu.sptes.items():
                if slots and spte.value and not any(slot.holds(gfn) for slot in slots):
                    text = f"{step.after} has no slot for gfn {gfn}, which {spte.label} maps"
                    return Violation(self.check, text, (*([self.where["spte"]] if "spte" in self.where else []), step.n))
        return None


class Instantiated(Monitor):
    """While an INVALID slot is torn down, and after it, nothing new is mapped of it."""

    check = "M-I3"

    def __init__(self, kvm: Memslots, mmu: ShadowMmu) -> None:
        arrays = [cell for array in kvm.arrays.values() for cell in array]
        made = [*mmu.sptes.values(), *([] if mmu.root is None else [mmu.root])]
        super().__init__([mmu.mmu_lock.cell, kvm.memslots, *made], reads=arrays, torn=False)
        self.kvm, self.mmu = kvm, mmu

    def on_step(self, step: Step) -> Violation | None:
        if step.cell is self.mmu.mmu_lock.cell:
            if step.writes and step.after == "userspace":
                first = self.kvm.arrays[self.kvm.memslots.value][0].value
                self.ghost["torn"] = isinstance(first, tuple) and bool(Slot(*first).flags & KVM_MEMSLOT_INVALID)
                self.where["torn"] = step.n
        elif step.cell is self.kvm.memslots:
            self.ghost["torn"] = self.ghost["torn"] and not step.writes
        elif step.writes and step.after and self.ghost["torn"]:
            assert step.cell is not None
            text = f"{step.thread} makes {step.cell.label} of an INVALID slot, whose mappings are torn down"
            return Violation(self.check, text, (self.where["torn"], step.n))
        return None


class WriteAfterFree(Monitor):
    """Nobody writes to an rmap or a bitmap that is freed; who reads one says so himself."""

    check = "M-I1"

    def on_step(self, step: Step) -> Violation | None:
        if step.writes and step.before == FREED and step.after != FREED:
            assert step.cell is not None
            return Violation(self.check, f"{step.thread} writes to {step.cell.label}, which is freed", (step.n,))
        return None


class Logged(Monitor):
    """When an ioctl returns, what is writable is marked in the bitmap: its next writes are reported.

    Not at every instant: an ioctl may do its halves in either order until it returns, and a fault has mmu_lock for its own.
    """

    check = "M-I9"

    def __init__(self, kvm: Memslots, mmu: ShadowMmu) -> None:
        watches = (kvm.slots_lock.cell, kvm.slots_rwsem, kvm.memslots, mmu.sptes[0])
        arrays = [cell for array in kvm.arrays.values() for cell in array]
        super().__init__(watches, reads=[*arrays, *kvm.tables.values(), mmu.mmu_lock.cell])
        self.kvm, self.spte, self.mmu_lock = kvm, mmu.sptes[0], mmu.mmu_lock.cell

    def on_step(self, step: Step) -> Violation | None:
        if step.cell is self.spte or step.cell is self.kvm.memslots:
            if step.writes:
                self.where[step.cell.name] = step.n
        elif step.writes and step.after in ("", 0) and self.spte.value.endswith("w") and not self.mmu_lock.value:
            slot = Slot(*self.kvm.arrays[self.kvm.memslots.value][0].value)
            if slot.dirty_bitmap and not self.kvm.tables[slot.dirty_bitmap].value:
                text = f"{self.spte.label} is writable and {slot.dirty_bitmap} is empty: the next write is never logged"
                return Violation(self.check, text, (*sorted(self.where.values()), step.n))
        return None


class NotMapped(Monitor):
    """A page is not freed while a guest maps it."""

    check = "M-I5"

    def on_step(self, step: Step) -> Violation | None:
        mapping = next((cell.label for cell in self.reads if str(cell.value).startswith("0")), "")
        if step.after == "freed" and mapping:
            return Violation(self.check, f"{step.thread} frees page 0, and {mapping} still maps it", (step.n,))
        return None


class MemslotDeletion(Scenario):
    """Slots are deleted, created, moved and logged, under readers."""

    name = "memslot_deletion"
    patch = "bc6678a33d9b KVM: introduce kvm->srcu and convert kvm_set_memory_region to SRCU update (2009)"
    vcpus = 1
    max_vcpus = 1024
    #: what the patch left open, and every mutant of it has
    claims: ClassVar = {"move": Always, "get_log": Sometimes, "no_memory": Sometimes, "odd": Always}
    setups: ClassVar = {
        "fault": Setup("userspace deletes a slot; a vCPU faults on it"),
        "reclaim": Setup("userspace deletes a slot; the host reclaims its page, which a vCPU has mapped and in its TLB"),
        "root": Setup("userspace deletes a slot; a vCPU makes a shadow root of it"),
        "sleeper": Setup("userspace deletes a slot, then interrupts a vCPU that reads guest memory from disk, and halts"),
        "create": Setup("userspace creates a slot; a vCPU faults on it"),
        "move": Setup("userspace moves a slot to another frame, which a vCPU has mapped and in its TLB"),
        "log": Setup("userspace switches dirty logging on; a vCPU writes"),
        "get_log": Setup("userspace gets the dirty log; a vCPU writes", LOGS),
        "reclaim_log": Setup("userspace gets the dirty log; the host reclaims the page, which a vCPU has in its TLB", LOGS),
        "two_updaters": Setup("one thread deletes a slot, another creates one"),
        "no_memory": Setup("userspace deletes a slot, and any step of it that can fail may fail"),
        "odd": Setup("userspace makes one of several odd requests; nobody else runs"),
        "overlap": Setup("two threads create slots that overlap", ("before", "after", "today", "checks_early")),
    }
    functions: ClassVar = FUNCTIONS
    variants: ClassVar = {
        "before": Variant("2.6.33: vCPUs wait while slots change", BEFORE,
                          {**sometimes(*EXITS, "odd"), "no_memory": Never}),
        "patch_alone": Variant("the patch without f656ce0185ca: vCPUs still wait", RWSEM, sometimes(*EXITS)),
        "after": Variant("2.6.34: INVALID, grace period, flush, then gone; vCPUs read under SRCU"),
        "flush_moved": Variant("3.8's flush after a move, by itself: it finds no slot for what it tears down",
                               {"kvm_arch_commit_memory_region": commit_flushes_moved}),
        "move_invalid": Variant("3.8: a slot that moves is INVALID in between", {"wants_invalid_step": moves_or_deletes},
                                {"move": Never}),
        "swap_first": Variant("2.6.37: GET_DIRTY_LOG swaps, then write-protects", {"get_dirty_log": get_dirty_log_swap_first},
                              {"get_log": Never}),
        "protect": Variant("3.8: GET_DIRTY_LOG swaps words, and no slots",
                           {"get_dirty_log": get_dirty_log_protect, "mark_in_bitmap": mark_by_set_bit}, {"get_log": Never}),
        "today": Variant("6.16: what is half done is undone; odd requests are refused", TODAY,
                         dict.fromkeys(("move", "get_log", "no_memory", "odd"), Never)),
        "M-M1": Variant("no grace period before the flush", {"invalidate_memslot": m1_no_first_wait},
                        sometimes("fault", "root", "sleeper")),
        "M-M2": Variant("no grace period after the slot is gone", {"install_new_memslots": m2_no_second_wait},
                        sometimes("fault", "root", "sleeper", "create", "log")),
        "M-M3": Variant("flush before INVALID", {"invalidate_memslot": m3_flush_first}, sometimes("fault", "root")),
        "M-M4": Variant("free before the grace period", {"invalidate_memslot": m4_free_early},
                        sometimes("fault", "reclaim", "root", "sleeper")),
        "M-M5": Variant("naive: publish, then flush", {"kvm_set_memslot": m5_publish_then_flush},
                        {**sometimes("fault", "reclaim", "root"), "no_memory": Never}),
        "M-M6": Variant("naive: flush, then publish", {"kvm_set_memslot": m6_flush_then_publish},
                        {**sometimes("fault", "root"), "no_memory": Never, "move": Never}),
        "M-M7": Variant("vCPUs read without SRCU", {"vcpu_read_lock": no_read_lock, "vcpu_read_unlock": no_read_unlock},
                        sometimes(*EXITS)),
        "M-M8": Variant("notifiers skip INVALID slots", {"notifier_skips": skips_invalid}, sometimes("reclaim")),
        "M-M9": Variant("notifiers without SRCU: mmu_lock, which every commit takes, hides it but for GET_DIRTY_LOG",
                        {"notifier_read_lock": no_read_lock, "notifier_read_unlock": no_read_unlock}, sometimes("reclaim_log")),
        "M-M11": Variant("roots are made of INVALID slots", {"kvm_is_visible_gfn": m11_sees_invalid}, sometimes("root")),
        "M-M12": Variant("gfn_to_memslot() hides INVALID slots", {"gfn_to_memslot": m12_hides_invalid},
                         sometimes("fault", "reclaim", "root")),
        "M-M13": Variant("no TLB flush", {"flush_after_zap": nothing}, sometimes("reclaim")),
        "M-M14": Variant("logging: flush, then publish: harmless, the commit write-protects after it", M14),
        "protect_early": Variant("logging: flush and write-protect, then publish", PROTECT_EARLY, sometimes("log")),
        "M-M17": Variant("slots_lock is taken in a read section", {"vcpu_uses_slots_lock": m17_slots_lock_inside},
                         sometimes("sleeper")),
        "M-M18": Variant("a vCPU halts in a read section", {"vcpu_uses_slots_lock": m18_halts_inside}, sometimes("sleeper")),
        "M-M19": Variant("a plain store publishes: hidden by x86", {"rcu_assign_pointer": WRITE_ONCE},
                         sometimes(*EXITS[:-1], "reclaim", "reclaim_log", word={"pso": Sometimes})),
        "M-M20": Variant("synchronize_srcu(), not _expedited(): harmless", {"synchronize_memslots": synchronize_memslots_slowly}),
        "M-M21": Variant("the array is copied before slots_lock is taken", {"kvm_set_memory_region": m21_copies_early},
                         sometimes("two_updaters")),
        "checks_early": Variant("requests are checked before slots_lock is taken", {"kvm_set_memory_region": checks_early},
                                sometimes("two_updaters", "overlap")),
        "M-M22": Variant("a slot moves in one step: the patch itself, see move"),
        "tlb_late": Variant("TLBs are flushed after mmu_lock is dropped", {"kvm_arch_flush_shadow": flush_shadow_tlb_late},
                            sometimes("reclaim")),
        "flip_only": Variant("SRCU flips without synchronize_sched()", {"synchronize_memslots": synchronize_flip_only},
                             sometimes("fault", "root", "sleeper")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """Slot 0 is frame 0, at hva 0."""
        mapped = "0w" if setup in ("reclaim", "move", "get_log", "reclaim_log") else ""
        logged = setup in ("get_log", "reclaim_log")
        first = Slot(0, 2 if setup == "odd" else 1, KVM_MEM_LOG_DIRTY_PAGES * logged, 0, "rmap1", "bitmap1" if logged else "")
        bodies = {"reclaim": in_guest, "reclaim_log": in_guest, "move": in_guest, "root": mmu_alloc_roots,
                  "sleeper": vcpu_reads_and_halts, "fault": vcpu_faults, "create": vcpu_faults, "log": vcpu_writes,
                  "get_log": vcpu_writes}  # fmt: skip
        kswapd = ("kswapd", try_to_unmap)
        hosts = {"reclaim": kswapd, "reclaim_log": kswapd, "sleeper": ("disk", disk)}
        runs = bodies.get(setup)
        still = {"reclaim": 1, "reclaim_log": 1, "move": vm.size}.get(setup, 0)  # so many vCPUs stay in the guest
        readers = [f"vcpu{i}" for i in range(still, vm.size if runs else 0)]
        readers += ["kswapd"] * setup.startswith("reclaim")
        slots = [Slot() if setup in ("create", "overlap") else first]
        slots += {"two_updaters": [Slot()], "overlap": [Slot()], "odd": [Slot(), Slot(2, 1, 0, 2, "rmap3")]}.get(setup, [])
        kvm = Memslots(vm, "kvm", slots, 4 if setup in ("two_updaters", "overlap") else 3, readers)
        for name in ("rmap1", "rmap2", "rmap3")[: 3 if setup == "odd" else 2]:
            kvm.table(name, "spte[0]" if mapped and name == "rmap1" else "")
        if logged or setup == "log":
            kvm.table("bitmap1", 1)
            kvm.table("bitmap2", 0)
        mmu = ShadowMmu(vm, "mmu", {0: mapped}, [0], shadow_page=setup == "root")
        if runs is not None:
            for i in range(vm.size):
                VcpuTask(vm, i, vcpu_faults if runs is in_guest and i >= still else runs, kvm, mmu, mapped)
        if setup in hosts:
            Notifier(vm, *hosts[setup], kvm, mmu)
        does = {"sleeper": deletes_then_interrupts, "create": asks(CREATE), "move": asks(MOVE), "log": asks(LOG),
                "get_log": gets_dirty_log, "reclaim_log": gets_dirty_log, "odd": asks_oddly, "overlap": asks(CREATE)}  # fmt: skip
        userspace = Updater(vm, "userspace", does.get(setup, asks(DELETE)), kvm, ("slots2", "slots3"), "rmap2")
        userspace.memory_is_short = setup == "no_memory"
        if setup in ("two_updaters", "overlap"):
            Updater(vm, "hotplug", asks(region(1, setup == "two_updaters", 1, 1)), kvm, ("slots4",), "rmap1")

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        found: list[Monitor] = [NoOops([task.oops]) for task in self.tasks(vm)]
        kvm, mmu = machine(vm)
        found.append(WriteAfterFree(kvm.tables.values()))
        if vm.setup in ("fault", "reclaim", "move"):
            found.append(Resolvable(kvm, mmu))
        if vm.setup in ("fault", "root"):
            found.append(Instantiated(kvm, mmu))
        if vm.setup in ("log", "get_log"):
            found.append(Logged(kvm, mmu))
        if vm.calls.vcpu_read_lock is vcpu_down_read:
            found.append(NoStall([kvm.slots_rwsem]))
        if vm.setup.startswith("reclaim"):
            tlbs = [task.tlb for task in self.tasks(vm) if isinstance(task, VcpuTask)]
            found.append(NotMapped([mmu.pages[0]], reads=[*mmu.sptes.values(), *tlbs]))
        return found

    def tasks(self, vm: Vm) -> list[Task]:
        """The threads, those in question."""
        return [actor for actor in vm.actors if isinstance(actor, Task) and vm.in_question(actor)]

    def stuck(self, vm: Vm) -> list[Violation]:
        """What is left undone or left behind."""
        waiting = [task for task in self.tasks(vm) if task.end in ("", "halted")]
        if waiting:
            who = some([task.name for task in waiting])
            if any(task.end == "halted" for task in waiting):
                return [Violation("M-L1", f"the ioctl waits for a vCPU that sleeps and still reads: {who} never go on")]
            return [Violation("M-L2", f"deadlock: {who} wait for each other")]
        return [*self.left_behind(vm), *self.broken(vm)]

    def left_behind(self, vm: Vm) -> Iterator[Violation]:
        """Mappings of what is no longer there, or not logged."""
        kvm, mmu = machine(vm)
        slots = kvm.now()
        tlbs = [(0, task.tlb) for task in self.tasks(vm) if isinstance(task, VcpuTask)]
        for gfn, cell in (*mmu.sptes.items(), *tlbs):
            slot = next((slot for slot in slots if slot.holds(gfn)), None)
            if cell.value and slot is None:
                yield Violation("M-I2", f"{cell.label} still maps gfn {gfn}, which is in no slot")
            elif cell.value.endswith("w") and slot is not None and slot.dirty_bitmap and not kvm.tables[slot.dirty_bitmap].value:
                yield Violation("M-I9", f"{cell.label} is writable and page {gfn} is not marked: what is written is never logged")
            elif cell.value and mmu.pages[0].value == "freed":
                yield Violation("M-I5", f"{cell.label} maps a page that is freed")
        if mmu.root is not None and mmu.root.value and not any(slot.holds(0) for slot in slots):
            yield Violation("M-I2", "a shadow root of gfn 0 is left, and no slot has it")

    def broken(self, vm: Vm) -> Iterator[Violation]:
        """What userspace was told and is not so."""
        kvm, _ = machine(vm)
        slots = kvm.now()
        (userspace,) = (actor for actor in vm.actors if isinstance(actor, Updater) and actor.name == "userspace")
        if any(a.npages and b.npages and a.base_gfn < b.base_gfn + b.npages and b.base_gfn < a.base_gfn + a.npages
               for a, b in combinations(slots, 2)):  # fmt: skip
            yield Violation("M-I6", f"two slots have one frame: {self.in_words(kvm, slots)}")
        if vm.setup == "no_memory" and userspace.r and slots[0] != Slot(*kvm.arrays["slots1"][0].init):
            yield Violation("M-I8", f"the ioctl failed, and the slot is {kvm.value_name(kvm.memslots, tuple(slots[0]))}")
        elif vm.setup == "two_updaters" and (slots[0].npages or not slots[1].npages):
            yield Violation("lost", f"both ioctls returned 0; one update is lost: {self.in_words(kvm, slots)}")
        elif vm.setup == "odd":
            yield from self.oddities(kvm, slots, userspace)

    def in_words(self, kvm: Memslots, slots: list[Slot]) -> str:
        """What userspace would be told, could it ask."""
        return ", ".join(kvm.value_name(kvm.memslots, tuple(slot)) for slot in slots)

    def oddities(self, kvm: Memslots, slots: list[Slot], userspace: Updater) -> Iterator[Violation]:
        """What an odd request should not lead to."""
        if any(slot.flags & KVM_MEMSLOT_INVALID for slot in slots):
            yield Violation("abi", "userspace made an INVALID slot, which no vCPU can use")
        elif userspace.end == "another hva" and not userspace.r:
            yield Violation("abi", "the ioctl returned 0, and the slot's hva is what it was")
        elif userspace.end == "to delete no slot" and userspace.used:
            yield Violation("abi", "two grace periods and a flush for a slot that was not there")
        elif userspace.end.startswith("to delete a slot") and slots[2].npages:
            yield Violation("abi", f"a slot cannot be deleted: r = {userspace.r}")

    def outcome(self, vm: Vm) -> str:
        """How the threads ended."""
        vcpus = alike(((t.name, f" {t.end or 'waits'}") for t in self.tasks(vm) if isinstance(t, VcpuTask)), apart=0)
        others = [f"{task.name} {task.end or 'waits'}" for task in self.tasks(vm) if not isinstance(task, VcpuTask)]
        return "; ".join(filter(None, [vcpus, *others]))
