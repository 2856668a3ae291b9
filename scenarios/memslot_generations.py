"""A vCPU remembers that a guest frame is a device's, and memory is plugged in there (ee3d1570b586 and 56f17dd3fbc4, 2014).

KVM writes into the spte of a frame without a slot that it is MMIO, tagged with the generation of the slots, and the vCPU notes
the address for itself.  In 3.11 the generation went up when the new slots were published.  A vCPU that had looked at the old ones
then read the new generation, and tagged what it had found there with it: MMIO for ever, and the guest's stores to its new memory
go to userspace ("before").  The vCPU's own note had no tag at all.  ee3d1570b586 makes the generation odd while an update is in
flight, and even when nobody can read the old slots any more ("odd"); 56f17dd3fbc4 tags the note ("tagged"); each alone is not
enough.  "both" is 3.19, and goes wrong yet: a vCPU in flight believes an spte of the odd generation, and by the time it makes its
note it reads the even one.  6.16 believes none while a flag, bit 63, says that an update is in progress ("after"); without the
flag ("no_flag"), or the look at it ("hit_in_flux"), that is back where another vCPU made the spte ("known").  That no note is
made in flux (ddfd1730fd82) changes nothing that a guest can tell once the ioctl has returned ("noted_in_flux").

The bits in an spte wrap after some 500,000 updates: sptes of the last round must be zapped before the new generation is seen, not
after ("updated_late", 152482580a1b).  That makes the window smaller ("wrap"): a vCPU that has loaded such an spte and then loads
the generation still takes it for a new one.  "gen_first", our own, loads the generation once and first, and closes it.

A slot that is being deleted is not MMIO yet: a fault on it is retried.  Else an spte of memory is replaced by one of MMIO before
it was zapped, which the TDP MMU calls a bug ("unplug", "no_retry").

Modelled: the walk of the CPU, MMIO faults, the note, the emulator.  Left out: the guest's page tables, which the note is also
about; two address spaces; fast zapping by a generation of shadow pages; that 3.11 zapped early enough not to wrap.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from actors.memslots import Task
from actors.mmio import (
    FUNCTIONS,
    MEMORY,
    NO_SLOT,
    NONE,
    READ_ONLY,
    SLOT,
    MmioVcpu,
    MmioVm,
    cache_tagged,
    cache_untagged,
    check_spte_whatever,
    guest_writes_until_done,
    handle_mmio_page_fault_gen_first,
    install_odd,
    install_with_next,
    invalid_is_mmio,
    mmio_vm,
    plugs_memory,
    probes_then_uses,
    swap_generation_early,
    swap_updated_late,
    swap_without_flag,
    unplugs_memory,
    untagged_in_cache,
)
from racevisor import Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike, some

NEXT: dict[str, Callable[..., Any]] = {"kvm_swap_active_memslots": install_with_next, "check_mmio_spte": check_spte_whatever}
ODD: dict[str, Callable[..., Any]] = {"kvm_swap_active_memslots": install_odd, "check_mmio_spte": check_spte_whatever}
UNTAGGED: dict[str, Callable[..., Any]] = {"vcpu_cache_mmio_info": cache_untagged, "mmio_info_in_cache": untagged_in_cache}
TAGGED: dict[str, Callable[..., Any]] = {"vcpu_cache_mmio_info": cache_tagged}
PLUGS = ("plug", "known")
LATER = ("after", "gen_first", "updated_late", "early", "no_flag", "noted_in_flux", "hit_in_flux")


class Zapped(Monitor):
    """Memory is unmapped before the frame is called MMIO."""

    check = "replaced"

    def on_step(self, step: Step) -> Violation | None:
        if step.writes and isinstance(step.after, tuple) and step.before in (MEMORY, READ_ONLY):
            return Violation(self.check, f"{step.thread} makes an MMIO spte of one that maps memory", (step.n,))
        return None


class MemslotGenerations(Scenario):
    """Memory is plugged in where a vCPU thinks there is a device; more vCPUs touch the same frame."""

    name = "memslot_generations"
    patch = "ee3d1570b586 kvm: fix potentially corrupt mmio cache; 56f17dd3fbc4 kvm: x86: fix stale mmio cache bug (2014)"
    vcpus = 1
    max_vcpus = 1024
    fixed = "gen_first"
    live = "plug"
    claims: ClassVar = {"wrap": Sometimes}
    setups: ClassVar = {
        "plug": Setup("userspace creates a slot, and tells the guest; the guest touches the frame before that, and after",
                      ("before", "odd", "tagged", "both", *LATER)),
        "known": Setup("the same; another vCPU has made an MMIO spte already", ("before", "odd", "tagged", "both", *LATER)),
        "wrap": Setup("the same; the generation's bits wrap, and there is an MMIO spte of the last time", ("both", *LATER)),
        "unplug": Setup("userspace deletes a slot; the guest writes to a write-protected page of it",
                        ("after", "gen_first", "no_retry")),
    }  # fmt: skip
    functions: ClassVar = FUNCTIONS
    variants: ClassVar = {
        "before": Variant("3.11: the new generation comes with the new slots", NEXT | UNTAGGED, dict.fromkeys(PLUGS, Sometimes)),
        "odd": Variant("an odd generation in flight: ee3d1570b586 alone", ODD | UNTAGGED, dict.fromkeys(PLUGS, Sometimes)),
        "tagged": Variant("the vCPU's note has a generation: 56f17dd3fbc4 alone", NEXT | TAGGED, dict.fromkeys(PLUGS, Sometimes)),
        "both": Variant("3.19: both of them", ODD | TAGGED, {"plug": Sometimes}),
        "after": Variant("6.16: a flag while in progress; zapped in time; INVALID slots are retried"),
        "gen_first": Variant("6.16 with the generation loaded once, before the spte",
                             {"handle_mmio_page_fault": handle_mmio_page_fault_gen_first}, {"wrap": Never}),
        "updated_late": Variant("6.16 in the order before 152482580a1b: the generation, then the zap",
                                {"kvm_swap_active_memslots": swap_updated_late}),
        "early": Variant("the new generation does not wait for the grace period",
                         {"kvm_swap_active_memslots": swap_generation_early}, dict.fromkeys(PLUGS, Sometimes)),
        "no_flag": Variant("the old generation while in progress", {"kvm_swap_active_memslots": swap_without_flag},
                           {"known": Sometimes}),
        "noted_in_flux": Variant("before ddfd1730fd82, the note is made in flux too: harmless", TAGGED),
        "hit_in_flux": Variant("sptes are believed in flux", {"check_mmio_spte": check_spte_whatever},
                               dict.fromkeys(PLUGS, Sometimes)),
        "no_retry": Variant("an INVALID slot is none", {"invalid_slot_retries": invalid_is_mmio}, {"unplug": Sometimes}),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """Frame 0."""
        if setup == "unplug":
            MmioVm(vm, "kvm", SLOT, READ_ONLY, 0, vm.size)
        elif setup == "wrap":
            odd = vm.calls.kvm_swap_active_memslots is install_odd
            MmioVm(vm, "kvm", NO_SLOT, ("mmio", 0), 2 if odd else 3, vm.size)
        else:
            MmioVm(vm, "kvm", NO_SLOT, ("mmio", 0) if setup == "known" else NONE, 0, vm.size)
        for i in range(vm.size):
            MmioVcpu(vm, f"vcpu{i}", guest_writes_until_done if setup == "unplug" else probes_then_uses)
        Task(vm, "userspace", unplugs_memory if setup == "unplug" else plugs_memory)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        return [Zapped([mmio_vm(vm).spte])] if vm.setup == "unplug" else []

    def exists(self, vm: Vm) -> bool | str:
        """The guest was told that there is memory, and its store went to a device."""
        found = any(actor.second == "MMIO" for actor in vm.actors if isinstance(actor, MmioVcpu) and vm.in_question(actor))
        return found and "the guest was told that memory is there, and its store to it goes to a device"

    def stuck(self, vm: Vm) -> list[Violation]:
        """All come to an end."""
        waiting = [actor.name for actor in vm.actors if isinstance(actor, Task) and vm.in_question(actor) and not actor.end]
        return [Violation("M-L1", f"{some(waiting)} never end")] if waiting else []

    def outcome(self, vm: Vm) -> str:
        """How the threads ended."""
        return alike((actor.name, f": {actor.end}") for actor in vm.actors if isinstance(actor, Task) and vm.in_question(actor))
