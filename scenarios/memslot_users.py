"""Who else relies on memory slots: six users, each with what it got wrong and how it was repaired (KVM, 2010 to 2021).

When slots came under SRCU (bc6678a33d9b, 2009), a vCPU in real mode looked slot 0 up twice, and could get the base of one array
and the size of another ("real_mode").  Pages were marked dirty with __set_bit(), a load and a store, as had been done all along,
also where mmu_lock is not held: one mark undid another ("marks").  A notifier could come before the lock that it takes was
initialised ("birth"), and the last vCPUs went after SRCU had been cleaned up ("death", 647492047763).  Ten years later rmaps were
allocated only when a shadow root needed them, and lost if an update had copied the slots just before ("rmaps", b10a038e84d1);
and mmu_lock was taken only for ranges that slots have, so that an invalidation which began under one array and ended under
another counted itself once ("range_create", "range_delete", 52ac8b358b0c).  "before" has none of the repairs, "after" all.

eda2beda8356 put kvm_mmu_notifier_release() into a read section.  Without one nothing goes wrong ("no_release_srcu"): it runs when
the mm has no more users, and who changes slots is one.  The patch quieted lockdep.

Modelled: SRCU, slot arrays, the locks around the swap, rcuwait, ticket spinlocks in "birth".  Left out: what a stale count does
to faults, which is in mmu_notifier; allocations that fail; the teardown of anything but SRCU and mappings.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from actors.actor import Cell
from actors.memslots import BITS_PER_LONG, KVM_MEM_LOG_DIRTY_PAGES, Memslots, Slot, Task, Updater, bitmap_word
from actors.slot_readers import ShadowMmu, VcpuTask, mark_in_bitmap, no_read_lock, no_read_unlock
from actors.slot_swap import (
    FUNCTIONS as SWAP,
)
from actors.slot_swap import (
    NO_SLOT,
    THERE,
    Swapped,
    alloc_in_what_was_active,
    changes_slot,
    copy_and_lock_late,
    invalidates,
    makes_root,
    no_arch_lock,
    publish_after_a_look,
    publish_at_once,
    sleep_late,
    swap_under_arch_lock,
    swapped,
)
from actors.slot_users import (
    FUNCTIONS as USERS,
)
from actors.slot_users import (
    Birth,
    Death,
    creates_vm,
    deletes_and_exits,
    enter_rmode,
    exits,
    kvm_create_vm_notifier_first,
    kvm_destroy_vm_srcu_first,
    moves_memory,
    reclaims_early,
    release_without_srcu,
    rmode_tss_base_twice,
    writes_guest,
)
from actors.slot_versions import FUNCTIONS as SLOTS
from actors.slot_versions import mark_by_set_bit
from racevisor import Always, Monitor, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike, some

BEFORE: dict[str, Callable[..., Any]] = {
    "mark_in_bitmap": mark_in_bitmap, "rmode_tss_base": rmode_tss_base_twice, "kvm_create_vm": kvm_create_vm_notifier_first,
    "kvm_destroy_vm": kvm_destroy_vm_srcu_first, "slots_arch_lock": no_arch_lock, "slots_arch_unlock": no_arch_lock,
    "publish_slots": publish_at_once,
}  # fmt: skip
RANGES = ("range_create", "range_delete")
REAL_MODE = [f"TSS at gfn {base + size - 3}" for base, size in ((0, 4), (0, 0), (8, 3))]  # replaced, gone, new


def there(*names: str) -> tuple[str, ...]:
    """The variants of a set-up: before, after, and those that change what happens in it."""
    return ("before", "after", *names)


class NoOops(Monitor):
    """Nobody reads what is freed, or finds nothing where something must be."""

    check = "oops"

    def on_step(self, step: Step) -> Violation | None:
        check, _, text = str(step.after).partition(": ")
        return Violation(check, f"{step.thread} {text}", (step.n,)) if text else None


class MarksStay(Monitor):
    """Who marks a page dirty undoes no other mark.  Watches one word of the bitmap, of which `first` is the first page."""

    check = "M-I9"

    def __init__(self, word: Cell, first: int) -> None:
        super().__init__([word])
        self.first = first

    def on_step(self, step: Step) -> Violation | None:
        lost = step.before & ~step.after if step.writes else 0
        if lost:
            page = lost.bit_length() - 1 + self.first
            text = f"{step.thread} writes its mark and undoes that of page {page}, which is never sent"
            return Violation(self.check, text, (self.where["marked"], step.n))
        if step.writes:
            self.where["marked"] = step.n
        return None


class Balanced(Monitor):
    """The end of an invalidation undoes its start, no more and no less."""

    check = "N-M16"

    def __init__(self, kvm: Swapped) -> None:
        super().__init__([kvm.mmu_invalidate_in_progress, kvm.mn_active_invalidate_count, kvm.memslots])
        self.kvm = kvm

    def on_step(self, step: Step) -> Violation | None:
        if not step.writes:
            return None
        kvm, count = self.kvm, self.kvm.mmu_invalidate_in_progress.value
        fatal = (*sorted(self.where.values()), step.n)
        if step.cell is kvm.mmu_invalidate_in_progress and count < 0:
            return Violation(self.check, f"{step.thread} ends an invalidation that it did not begin: the count is {count}", fatal)
        if step.cell is kvm.mn_active_invalidate_count:
            if not step.after and count:
                return Violation(self.check, "an invalidation is counted for ever: every fault of the VM retries for ever", fatal)
        elif step.cell is not None:
            self.where[step.cell.name] = step.n
        return None


class RmapsKept(Monitor):
    """An update publishes the rmaps that were allocated while it was under way."""

    check = "arch"

    def __init__(self, kvm: Swapped) -> None:
        super().__init__([*kvm.rmap, kvm.memslots])
        self.kvm = kvm

    def on_step(self, step: Step) -> Violation | None:
        if step.writes and step.cell is not self.kvm.memslots and step.cell is not None:
            self.where[step.cell.name] = step.n
        elif step.writes and self.kvm.rmap[step.before].value and not self.kvm.rmap[step.after].value:
            text = f"slots{step.after} is published with the rmap of before slots{step.before} got one: rmap_add() finds NULL"
            return Violation(self.check, text, (*sorted(self.where.values()), step.n))
        return None


class MemslotUsers(Scenario):
    """Slots change under whoever relies on them."""

    name = "memslot_users"
    patch = "647492047763, 52ac8b358b0c, b10a038e84d1 and others: what had to follow slots under SRCU (2010 to 2021)"
    setups: ClassVar = {
        "marks": Setup("KVM writes to a page for each of two vCPUs, and marks them dirty", there()),
        "real_mode": Setup("userspace replaces slot 0; a vCPU asks where it ends", there("no_srcu")),
        "birth": Setup("a VM is made; a page of the VMM is reclaimed", there()),
        "death": Setup("one thread of the VMM deletes a slot, another exits", there("no_release_srcu")),
        "rmaps": Setup("userspace changes the flags of a slot; a vCPU makes the first shadow root",
                       there("lock_late", "lock_long", "array_early")),
        "range_create": Setup("userspace creates a slot; the host invalidates the range of it", there("look_only", "sleep_late")),
        "range_delete": Setup("userspace deletes a slot; the host invalidates the range of it", there("look_only", "sleep_late")),
    }  # fmt: skip
    max_vcpus = 1024
    functions: ClassVar = {**SLOTS, **USERS, **SWAP, "mark_in_bitmap": mark_by_set_bit}
    variants: ClassVar = {
        "before": Variant("each as it was first", BEFORE,
                          {**dict.fromkeys(("marks", "real_mode", "birth", "rmaps", *RANGES), Sometimes), "death": Always}),
        "after": Variant("each as it was repaired"),
        "no_srcu": Variant("real mode reads slots without SRCU",
                           {"vcpu_read_lock": no_read_lock, "vcpu_read_unlock": no_read_unlock}, {"real_mode": Sometimes}),
        "no_release_srcu": Variant("before eda2beda8356: harmless", {"kvm_mmu_notifier_release": release_without_srcu}),
        "lock_late": Variant("slots_arch_lock is taken after the copy", {"copy_and_swap": copy_and_lock_late},
                             {"rmaps": Sometimes}),
        "lock_long": Variant("slots_arch_lock is kept over the grace period", {"kvm_swap_active_memslots": swap_under_arch_lock},
                             {"rmaps": Sometimes}),
        "array_early": Variant("the vCPU finds its slots before it has slots_arch_lock",
                               {"mmu_first_shadow_root_alloc": alloc_in_what_was_active}, {"rmaps": Sometimes}),
        "look_only": Variant("slots are published after mn_invalidate_lock is dropped", {"publish_slots": publish_after_a_look},
                             dict.fromkeys(RANGES, Sometimes)),
        "sleep_late": Variant("the updater is asleep only after it dropped the lock", {"sleep_unlocked": sleep_late},
                              dict.fromkeys(RANGES, Sometimes)),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """Few actors each; with more vCPUs, so many that enter real mode or make a root, and so many ranges at once."""
        many = vm.size if vm.size > self.vcpus else 1
        if setup == "birth":
            Birth(vm, "kvm")
            Task(vm, "userspace", creates_vm)
            Task(vm, "kswapd", reclaims_early)
        elif setup == "rmaps":
            who = [f"vcpu{i}" for i in range(many)]
            Swapped(vm, "kvm", (THERE, THERE), who)
            for name in who:
                Task(vm, name, makes_root)
            Task(vm, "userspace", changes_slot)
        elif setup in RANGES:
            who = ["munmap", *(f"munmap{i}" for i in range(1, many))]
            Swapped(vm, "kvm", (NO_SLOT, THERE) if setup == "range_create" else (THERE, NO_SLOT), who)
            for name in who:
                Task(vm, name, invalidates)
            Task(vm, "userspace", changes_slot)
        else:
            self.build_slots(vm, setup, vm.size if setup == "marks" else many)

    def build_slots(self, vm: Vm, setup: str, vcpus: int) -> None:
        """Slot 0, whole."""
        logged, mapped = setup == "marks", "0w" * (setup == "death")
        size = {"marks": vcpus, "real_mode": 4}.get(setup, 1)
        readers = ["vmm", "userspace"] if setup == "death" else [f"vcpu{i}" for i in range(vcpus)]
        slot = Slot(0, size, KVM_MEM_LOG_DIRTY_PAGES * logged, 0, "rmap1", "bitmap1" * logged)
        kvm = Memslots(vm, "kvm", [slot], {"marks": 1, "real_mode": 4}.get(setup, 3), readers)
        kvm.table("rmap1", "spte[0]" if mapped else "")
        mmu = ShadowMmu(vm, "mmu", {0: mapped}, [0])
        if setup == "marks":
            for page in range(0, vcpus, BITS_PER_LONG):
                kvm.table(bitmap_word("bitmap1", page), 0)
            for i in range(vcpus):
                VcpuTask(vm, i, writes_guest, kvm, mmu, "")
        elif setup == "real_mode":
            kvm.table("rmap2", "")
            for i in range(vcpus):
                VcpuTask(vm, i, enter_rmode, kvm, mmu, "")
            Updater(vm, "userspace", moves_memory, kvm, ("slots2", "slots3", "slots4"), "rmap2")
        else:
            Updater(vm, "userspace", deletes_and_exits, kvm, ("slots2", "slots3"), "")
            Updater(vm, "vmm", exits, kvm, (), "")
            Death(vm, "mm", 2)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        found: list[Monitor] = [NoOops([task.oops]) for task in self.tasks(vm)]
        if vm.setup == "marks":
            kvm: Any = vm.by_name["kvm"]
            pages = range(0, vm.size, BITS_PER_LONG)
            found += [MarksStay(kvm.tables[bitmap_word("bitmap1", page)], page) for page in pages]
        if vm.setup == "rmaps":
            found.append(RmapsKept(swapped(vm)))
        if vm.setup in RANGES:
            found.append(Balanced(swapped(vm)))
        return found

    def tasks(self, vm: Vm) -> list[Task]:
        """The threads."""
        return [actor for actor in vm.actors if isinstance(actor, Task) and vm.in_question(actor)]

    def stuck(self, vm: Vm) -> list[Violation]:
        """Who waits, and what is wrong that all have done."""
        waiting = [task.name for task in self.tasks(vm) if task.end == ""]
        if waiting:
            why = {
                "birth": "mmu_lock was initialised while it was held: there is nobody who could unlock it again",
                "rmaps": "who has slots_arch_lock waits for a reader, and the reader for slots_arch_lock",
            }.get(vm.setup, "the wake-up came before the sleep")
            return [Violation("M-L2" if vm.setup in ("birth", "rmaps") else "wake-up", f"{some(waiting)} wait: {why}")]
        return [*self.wrong(vm)]

    def wrong(self, vm: Vm) -> Iterator[Violation]:
        """What each set-up is about."""
        if vm.setup == "real_mode":
            for task in self.tasks(vm):
                if task.end.startswith("TSS") and task.end not in REAL_MODE:
                    yield Violation("torn", f"{task.name}'s {task.end}: the base of one array, and the size of another")

    def outcome(self, vm: Vm) -> str:
        """How the threads ended."""
        if vm.size > self.vcpus:
            return alike(((task.name, f" {self.in_short(vm, task)}") for task in self.tasks(vm)), apart=0)
        return "; ".join(f"{task.name} {task.end or 'waits'}" for task in self.tasks(vm))

    def in_short(self, vm: Vm, task: Task) -> str:
        """How one of many threads ended: each writes to a frame of its own, which tells nothing."""
        return "wrote its page" if vm.setup == "marks" and task.end.startswith("wrote") else task.end or "waits"
