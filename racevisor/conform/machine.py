"""The simulated machine behind the operations of a recording; what an operation is: docs/conform.md."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from actors.apic_events import (
    deliver_injected,
    kvm_arch_vcpu_ioctl_get_mpstate,
    kvm_arch_vcpu_ioctl_set_mpstate,
    run_once,
    vcpu_unblocked,
)
from actors.apic_irq import apic_update_ppr
from actors.apic_kernels import FUNCTIONS, KERNELS
from actors.apic_map import DIRTY, kvm_recalculate_apic_map, kvm_send_userspace_msi
from actors.apic_regs import (
    APIC_DFR,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ICR_HIGH,
    APIC_ID,
    APIC_LDR,
    APIC_PROCPRI,
    APIC_SPIV,
    APIC_SPIV_APIC_ENABLED,
    APIC_TASKPRI,
    LVT,
    MSR_IA32_APICBASE_ENABLE,
    X2APIC_ENABLE,
    ApicKvm,
    ApicVcpu,
    LocalApic,
)
from actors.apic_write import apic_mmio_write, kvm_apic_set_base, kvm_x2apic_msr_write
from actors.lapic import KVM_APIC_INIT
from actors.ops import Op
from actors.requests import KVM_MP_STATE_RUNNABLE, KVM_REQ_EVENT, KVM_REQ_NMI, kvm_check_request, kvm_make_request
from actors.vm import Vm
from racevisor.alone import run_alone
from racevisor.errors import UsageError

#: KVM_CAP_X2APIC_API
USE_32BIT_IDS, DISABLE_BROADCAST_QUIRK = 1, 2
_SHOWN = {"tpr": APIC_TASKPRI, "ppr": APIC_PROCPRI, "svr": APIC_SPIV, "dfr": APIC_DFR, "esr": APIC_ESR, "ldr": APIC_LDR}


class Machine:
    """One recorded sequence's machine, in its start state.

    `init`: the start state of each vCPU as visible() shows it, with mp, cs, ip and if; `ids`: the APIC ids, first the BSP's;
    `api`: the flags of KVM_CAP_X2APIC_API; `kernel`: the era, a name of actors.apic_kernels.KERNELS; `replaced`: functions of the
    kernel that are broken on purpose.  `mode` is told by each vCPU's IA32_APIC_BASE, and not looked at.
    """

    def __init__(
        self,
        init: Sequence[Mapping[str, Any]],
        *,
        mode: str = "",
        n: int,
        ids: Sequence[int],
        api: int,
        kernel: str = "6.18",
        replaced: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        if kernel not in KERNELS:
            raise UsageError(f"there is no kernel {kernel!r}\n  kernels: {', '.join(KERNELS)}")
        if not len(init) == len(ids) == n:
            raise UsageError(
                f"a machine of {n} vCPUs with {len(ids)} ids and {len(init)} start states\n  there must be one of each"
            )
        self.vm = Vm({**KERNELS[kernel], **(replaced or {})}, FUNCTIONS)
        self.kvm = ApicKvm(
            self.vm, x2apic_format=bool(api & USE_32BIT_IDS), x2apic_broadcast_quirk_disabled=bool(api & DISABLE_BROADCAST_QUIRK)
        )
        self.vcpus = [ApicVcpu(self.kvm, i, LocalApic(self.vm, f"lapic{i}")) for i in ids]
        self.vm.reset()
        for vcpu, state in zip(self.vcpus, init, strict=True):
            self._set(vcpu, state)
        self.kvm.apic_map_dirty.value = DIRTY
        self._run(kvm_recalculate_apic_map(self.kvm, self.kvm))

    def do(self, op: Sequence[Any]) -> Any:
        """Carry out one operation; returns what the real one returned, or says that it does."""
        name, *args = op
        result = getattr(self, f"_do_{name}")(*args)
        for vcpu in self.vcpus:  # KVM_GET_VCPU_EVENTS, by which the state is read, counts queued NMIs
            if vcpu.nmi_queued.value:
                self._run(self.vm.calls.process_nmi(vcpu))
        return result

    def visible(self) -> list[dict[str, Any]]:
        """The whole visible state of every vCPU, as KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS and IA32_APIC_BASE show it."""
        return [self._visible(vcpu) for vcpu in self.vcpus]

    # ---- the operations ---------------------------------------------------------------------------------------------------

    def _do_wr(self, v: int, offset: int, value: int) -> bool:
        vcpu = self.vcpus[v]
        base = vcpu.apic_base.value
        if not base & MSR_IA32_APICBASE_ENABLE:
            return False
        if base & X2APIC_ENABLE:
            accepted: bool = self._run(kvm_x2apic_msr_write(vcpu, vcpu.apic, offset, value))
            return accepted
        # The store is an instruction of the guest: the vCPU has to run for it.
        if vcpu.mp_state.value != KVM_MP_STATE_RUNNABLE and self._run(self.vm.calls.kvm_arch_vcpu_runnable(vcpu)):
            self._run(vcpu_unblocked(vcpu, vcpu))
        if vcpu.mp_state.value == KVM_MP_STATE_RUNNABLE and self._run(kvm_check_request(KVM_REQ_NMI, vcpu)):
            self._run(self.vm.calls.process_nmi(vcpu))
        self._run(apic_mmio_write(vcpu, vcpu.apic, offset, value & 0xFFFFFFFF))
        return True

    def _do_msi(self, address: int, data: int) -> int:
        taken: int = self._run(kvm_send_userspace_msi(self.kvm, self.kvm, address, data))
        return taken

    def _do_nmi(self, v: int) -> None:
        self._run(self.vm.calls.kvm_inject_nmi(self.kvm, self.vcpus[v]))

    def _do_look(self, v: int) -> dict[str, int]:
        vcpu = self.vcpus[v]
        state = self._run(kvm_arch_vcpu_ioctl_get_mpstate(self.kvm, vcpu))
        return {"mp": state, "cs": vcpu.cs, "ip": vcpu.ip, "if": int(vcpu.if_flag)}

    def _do_step(self, v: int) -> None:
        self._run(run_once(self.vcpus[v], self.vcpus[v]))

    def _do_ack(self, v: int) -> int | str | None:
        self._do_step(v)
        event = deliver_injected(self.vcpus[v])
        if event is not None:
            self._event(v)
        return event

    def _do_iret(self, v: int) -> None:
        self.vcpus[v].nmi_masked = False
        self._event(v)

    def _do_if(self, v: int, flag: int) -> None:
        self.vcpus[v].if_flag = bool(flag)
        self._event(v)

    def _do_setmp(self, v: int, state: int) -> None:
        self._run(kvm_arch_vcpu_ioctl_set_mpstate(self.vcpus[v], state))

    def _do_sipivec(self, v: int, vector: int) -> None:
        self.vcpus[v].apic.sipi_vector.value = vector
        self._event(v)

    def _do_base(self, v: int, value: int) -> bool:
        vcpu = self.vcpus[v]
        was_on = vcpu.apic_base.value & MSR_IA32_APICBASE_ENABLE
        accepted: bool = self._run(kvm_apic_set_base(self.kvm, vcpu, value, host_initiated=True))
        if accepted and value & MSR_IA32_APICBASE_ENABLE and not was_on:
            self._event(v)  # seen on a real 6.18: what waits in the IRR is looked for again; by which of its ways is not known
        return accepted

    def _event(self, v: int) -> None:
        """KVM_SET_REGS and KVM_SET_VCPU_EVENTS request it."""
        self._run(kvm_make_request(KVM_REQ_EVENT, self.vcpus[v]))

    def _run(self, coroutine: Coroutine[Op, Any, Any]) -> Any:
        return run_alone(coroutine, self.vm.by_name)

    # ---- the state --------------------------------------------------------------------------------------------------------

    def _set(self, vcpu: ApicVcpu, state: Mapping[str, Any]) -> None:
        apic = vcpu.apic
        vcpu.apic_base.value = state["base"]
        for words, vectors in ((apic.irr, state["irr"]), (apic.isr, state["isr"]), (apic.tmr, state["tmr"])):
            for vector in vectors:
                words[vector >> 5].value |= 1 << (vector & 31)
        for name, offset in _SHOWN.items():
            apic.reg[offset].value = state[name]
        for offset, value in zip(LVT, state["lvt"], strict=False):
            apic.reg[offset].value = value
        x2apic = bool(state["base"] & X2APIC_ENABLE)
        apic.reg[APIC_ID].value = vcpu.id if x2apic else state["id"]
        apic.reg[APIC_ICR].value = state["icr"] & 0xFFFFFFFF
        apic.reg[APIC_ICR_HIGH if x2apic else APIC_ICR2].value = state["icr"] >> 32
        apic.sw_enabled.value = bool(state["svr"] & APIC_SPIV_APIC_ENABLED)
        vcpu.isr_count = len(state["isr"])
        apic.pending_events.value = state["linit"] << KVM_APIC_INIT
        injected, vcpu.nmi_pending, masked = state["nmi"]
        vcpu.nmi_injected, vcpu.nmi_masked = bool(injected), bool(masked)
        vcpu.interrupt = state["inj"]
        vcpu.mp_state.value = state["mp"]
        vcpu.cs, vcpu.ip, vcpu.if_flag = state["cs"], state["ip"], bool(state["if"])
        self._run(apic_update_ppr(apic))
        self._run(kvm_make_request(KVM_REQ_EVENT, vcpu))

    def _visible(self, vcpu: ApicVcpu) -> dict[str, Any]:
        apic = vcpu.apic
        reg = {offset: cell.value for offset, cell in apic.reg.items()}
        base = vcpu.apic_base.value
        x2apic = bool(base & X2APIC_ENABLE)
        return {
            "irr": _vectors(apic.irr),
            "isr": _vectors(apic.isr),
            "tmr": _vectors(apic.tmr),
            **{name: reg[offset] for name, offset in _SHOWN.items()},
            "id": vcpu.id << 24 & 0xFFFFFFFF if x2apic and not self.kvm.x2apic_format else reg[APIC_ID],
            "icr": reg[APIC_ICR_HIGH if x2apic else APIC_ICR2] << 32 | reg[APIC_ICR],
            "lvt": [reg[offset] for offset in LVT[:6]],
            "nmi": [int(vcpu.nmi_injected), self.vm.calls.kvm_get_nr_pending_nmis(vcpu), int(vcpu.nmi_masked)],
            "inj": vcpu.interrupt,
            "linit": apic.pending_events.value >> KVM_APIC_INIT & 1,
            "base": base,
        }


def _vectors(words: Mapping[int, Any]) -> list[int]:
    found = []
    for r in range(8):
        word = words[r].value
        while word:
            low = word & -word
            found.append(r * 32 + low.bit_length() - 1)
            word ^= low
    return found
