"""Races of the local APIC itself, at register level: the machine that agrees with 1,000 recorded sequences of a real one.

Four words of an APIC are written by whoever sends, and what is right after every operation may be wrong between two accesses.

"hint": irr_pending says whether a scan of the IRR is worth it.  Senders set the bit, then the hint; who acknowledges clears the
hint, then the bit, and rescans.  With the hint first, as it was until 3.18 ("hint_first"), a sender's hint is cleared by an
acknowledge that does not see its bit yet: the interrupt is pending, and the vCPU sleeps on.  And the acknowledge relies on
clear_bit() to order its two stores, which the locked instruction of x86 does, and the name does not promise: in pso "after" loses
an interrupt, too, and "fenced", our own, has the barrier.

"tmr": the trigger mode has to be there before the bit is, or the EOI of a level interrupt is not told to the I/O APIC, and its
line never fires again ("tmr_last").

"map": every CPU of a guest writes its logical id as it starts, and each write makes the map of all APICs anew.  5.7 marked it
dirty and made it once for several changes (4abaffce4d25): a change that came while another vCPU made the map was taken for
included, and interrupts to that address reached nobody ("batch").  44d527170731 (5.8) tells "being made" from "made".

"nmi": two NMIs at a time are two, one in its handler and one pending.  Until 3.1 a flag collapsed them ("flag"); 7460fb4a3400
counts.

Modelled: the kernel functions of the register-level APIC, requests, kick, sleep, injection, EOI.  Left out: guest mode (guests
only handle interrupts and halt; a kick finds a sleeper or the host), APICv, RCU (a map is a value, and an old one may be read).
"""

from typing import ClassVar

from actors.apic_kernels import FUNCTIONS, KERNELS, recalculate_each_time
from actors.apic_mutants import hint_first, recalculate_in_batch, tmr_last
from actors.apic_regs import ApicVcpu
from actors.apic_threads import (
    Line,
    clear_irr_fenced,
    clear_irr_hint_last,
    clear_irr_without_rescan,
    inject_nmi_flag,
    one_vcpu,
    process_nmi_in_two_steps,
    recalculate_unlocked,
    vcpus_without_address,
)
from actors.devices import Device
from racevisor import Scenario, Setup, Sometimes, Variant, Vm, alike

TIMER, DISK, NIC = 0x31, 0x32, 0x33  # one word of the IRR


class ApicRaces(Scenario):
    """Between two accesses to an APIC: the IRR's hint, TMR, the map, the count of NMIs."""

    name = "apic_races"
    fixed = "fenced"
    patch = "7460fb4a3400 KVM: Fix simultaneous NMIs (2011); 44d527170731 KVM: LAPIC: ensure APIC map is up to date (2020)"
    vcpus = 2
    live = "nmi"
    setups: ClassVar = {
        "hint": Setup("two devices interrupt a vCPU that sleeps",
                      ("after", "fenced", "3.10", "hint_first", "no_rescan", "hint_last")),
        "tmr": Setup("a timer's edge and a disk's level interrupt, to a vCPU that sleeps", ("after", "fenced", "tmr_last")),
        "map": Setup("two vCPUs write their logical ids, and send to them",
                     ("after", "fenced", "3.10", "batch", "each_time", "unlocked")),
        "nmi": Setup("two NMIs to a vCPU that sleeps", ("flag", "after", "fenced", "3.10", "two_steps")),
    }  # fmt: skip
    functions: ClassVar = FUNCTIONS
    variants: ClassVar = {
        "flag": Variant("before 7460fb4a3400: a flag for NMIs", {"kvm_inject_nmi": inject_nmi_flag}, {"nmi": Sometimes}),
        "after": Variant("6.18", {}, {"hint": {"pso": Sometimes}, "tmr": {"pso": Sometimes}}),
        "fenced": Variant("6.18 with a barrier between the hint and the IRR bit that are cleared",
                          {"apic_clear_irr": clear_irr_fenced}),
        "3.10": Variant("the APIC of that kernel", KERNELS["3.10"], {"hint": Sometimes}),
        "hint_first": Variant("3.8 to 3.18: the hint before the IRR bit", {"kvm_lapic_set_irr": hint_first}, {"hint": Sometimes}),
        "no_rescan": Variant("an acknowledge clears the hint and does not look for more",
                             {"apic_clear_irr": clear_irr_without_rescan}, {"hint": Sometimes}),
        "hint_last": Variant("an acknowledge clears, rescans, and then writes the hint", {"apic_clear_irr": clear_irr_hint_last},
                             {"hint": Sometimes}),
        "tmr_last": Variant("TMR after IRR", {"apic_dm_fixed": tmr_last}, {"tmr": Sometimes}),
        "batch": Variant("5.7: dirty or not dirty", {"kvm_recalculate_apic_map": recalculate_in_batch}, {"map": Sometimes}),
        "each_time": Variant("3.7 to 5.6: the map is made at every change",
                             {"kvm_recalculate_apic_map": recalculate_each_time}),
        "unlocked": Variant("without apic_map_lock", {"kvm_recalculate_apic_map": recalculate_unlocked}, {"map": Sometimes}),
        "two_steps": Variant("the count of NMIs is read, then cleared",
                             {"process_nmi": process_nmi_in_two_steps}, {"nmi": Sometimes}),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """One vCPU and two devices, or two vCPUs."""
        if setup == "map":
            vcpus_without_address(vm, vm.size, NIC)
            return
        vcpu = one_vcpu(vm, (TIMER, DISK))
        Line(vcpu, "timer", TIMER, nmi=setup == "nmi")
        Line(vcpu, "disk", DISK, level=setup == "tmr", nmi=setup == "nmi")

    def exists(self, vm: Vm) -> bool | str:
        """What was sent did not arrive, or nobody was told that it was dealt with."""
        for vcpu in _vcpus(vm):
            if any(word.value for word in vcpu.apic.irr.values()) and vm.setup != "map":
                return f"an interrupt is pending in the IRR of {vcpu.name}, which sleeps"
            if vm.setup == "map" and getattr(vcpu, "reached", 1) < 1:
                return f"{vcpu.name} sends to the logical id that it has written, and no APIC has it"
            if vm.setup == "nmi" and len(getattr(vcpu, "taken", ())) < 2:
                return f"two NMIs were sent to {vcpu.name}, and its handler ran once"
        told = all(not device.remote_irr.value for device in vm.actors if isinstance(device, Device))
        return not told and "a level interrupt was dealt with, and the I/O APIC waits for its EOI for ever"

    def outcome(self, vm: Vm) -> str:
        """What each vCPU took, or how many took what it sent."""
        if vm.setup == "map":
            return alike((vcpu.name, f" reached {getattr(vcpu, 'reached', 0)}") for vcpu in _vcpus(vm))
        return alike(
            (vcpu.name, f" took {', '.join(_name(event) for event in getattr(vcpu, 'taken', ()))}") for vcpu in _vcpus(vm)
        )


def _vcpus(vm: Vm) -> list[ApicVcpu]:
    return [actor for actor in vm.actors if isinstance(actor, ApicVcpu)]


def _name(event: int | str) -> str:
    return {TIMER: "timer", DISK: "disk"}.get(event, "nmi") if isinstance(event, int) else event
