"""A real KVM as a machine: the operations of a sequence done by ioctls, and the visible state read back.

No guest code runs, with one exception: KVM has no ioctl for an xAPIC register, so a `wr` in xAPIC mode executes one
instruction, MOVS from a page that is not there to the register.  Its read leaves to us (KVM_EXIT_MMIO); we hand over the
value and re-enter with immediate_exit, which completes the store and returns before any other event is looked at.

Source: arch/x86/kvm/x86.c and lapic.c, Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
from collections.abc import Sequence
from ctypes import addressof, c_char
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from racevisor.conform import ioctls as k
from racevisor.conform.page import APIC_ICR, APIC_SELF_IPI, APIC_TASKPRI, to_registers, to_state
from racevisor.errors import UsageError

MOST_VCPUS = 8
PAGE = 4096
LOW = 0x110000  # real mode reaches no further, and SIPI starts anywhere in it
RESET = 0xFFFF0000  # the segment of the reset vector
NOWHERE = 0xD0000000  # no memory: a read of it is ours to answer
TSS = 0x7FFBD000  # three pages of an address below 2 GiB that no one else uses
# es movsd: from ES:ESI to ES:EDI in 16-bit code; then jmp to itself, which is never reached.
STORE = bytes((0x26, 0x67, 0x66, 0xA5, 0xEB, 0xFE))
IF = 0x200
IOAPIC_PINS = 24

# Both are blocked in the thread that owns a machine, and delivered to nobody: KVM_RUN alone lets them in.
# (No such signals is no Linux, and so no KVM: this module can be imported there, and says so when it is used.)
_LAST = int(getattr(signal, "SIGRTMAX", 0))
KICK = _LAST  # always pending: KVM_RUN does its event work and returns
LATE = _LAST - 1  # the time is up

ENABLED, EXTD = 0x800, 0x400
RUNNABLE = 0


class NotPlayable(UsageError):
    """A store by a vCPU that cannot execute an instruction now."""


class Late(UsageError):
    """A machine was not done with its sequence in the time that it was given."""


class _Vcpu:
    """A vCPU's descriptor, the page that it shares with the kernel, and what was last read of it."""

    def __init__(self, fd: int, shared: mmap.mmap) -> None:
        self.fd, self.shared = fd, shared
        self.run = k.kvm_run_mmio.from_buffer(shared)
        self.seen: tuple[bytes, bytes, int] | None = None
        self.state: dict[str, Any] = {}

    def close(self) -> None:
        del self.run  # a mapping that something points into cannot be closed
        self.shared.close()
        os.close(self.fd)


class Kvm:
    """A virtual machine of the real KVM with the interface of the model: do() an operation, and what is visible() after it.

    To be used in one thread, as a context manager: leaving it frees everything.

    Args:
        init: the start state of each vCPU, as in a recorded sequence.
        mode: "x2apic", "xapic" or "mixed"; says nothing that `init` does not say, and is here as the model has it.
        n: number of vCPUs, at most 8.
        ids: their vCPU ids, which are their APIC ids.
        api: flags of KVM_CAP_X2APIC_API.
        device: KVM's device.
        seconds: after so long a blocked or endless KVM_RUN is interrupted.

    Raises:
        NoKvm: there is no usable KVM.
        UsageError: more vCPUs than 8, or a start state that KVM does not take.
    """

    def __init__(
        self,
        init: Sequence[dict[str, Any]],
        *,
        mode: str,
        n: int,
        ids: Sequence[int],
        api: int,
        device: Path = k.DEVICE,
        seconds: float = 10.0,
    ) -> None:
        if not 1 <= n <= MOST_VCPUS or len(ids) != n or len(init) != n:
            raise UsageError(
                f"a machine has 1 to {MOST_VCPUS} vCPUs with an id and a start state each, not {n}, {len(ids)}, {len(init)}"
            )
        self.mode, self.ids = mode, list(ids)
        self.vcpus: list[_Vcpu] = []
        self._fds: list[int] = []
        self._can_store: set[int] = set()
        self._has_reset_page = False
        self._late = threading.Event()
        self._signals: set[int] | None = None
        self._timer: threading.Timer | None = None
        try:
            kvm = k.open_kvm(device)
            self._fds.append(kvm)
            self._hold_signals(seconds)
            self._create(kvm, api, device)
            for vcpu, start in zip(self.vcpus, init, strict=True):
                self._start(vcpu, start)
        except OSError as error:
            self.close()
            raise UsageError(f"KVM does not take this start state: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back: descriptors, mappings, signals.  May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        while self.vcpus:
            self.vcpus.pop().close()
        while self._fds:
            os.close(self._fds.pop())
        if self._signals is not None:
            ours = (LATE,) if KICK in self._signals else (KICK, LATE)  # an outer machine of this thread still needs its own
            while signal.sigtimedwait(ours, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
            self._signals = None

    def _hold_signals(self, seconds: float) -> None:
        self._signals = signal.pthread_sigmask(signal.SIG_BLOCK, (KICK, LATE))
        thread = threading.get_ident()
        if KICK not in self._signals:
            signal.pthread_kill(thread, KICK)

        def late() -> None:
            self._late.set()
            signal.pthread_kill(thread, LATE)

        self._timer = threading.Timer(seconds, late)
        self._timer.daemon = True
        self._timer.start()

    def _create(self, kvm: int, api: int, device: Path) -> None:
        self.vm = k.create_vm(kvm, device)
        self._fds.append(self.vm)
        k.call(self.vm, k.KVM_SET_TSS_ADDR, TSS)  # what processors without unrestricted guests need for real mode
        if api:
            k.call(self.vm, k.KVM_ENABLE_CAP, k.kvm_enable_cap(cap=k.KVM_CAP_X2APIC_API, args=(api, 0, 0, 0)))
        # The local APICs are KVM's, PIC and IOAPIC would be a program's: nothing here needs them.
        k.call(self.vm, k.KVM_ENABLE_CAP, k.kvm_enable_cap(cap=k.KVM_CAP_SPLIT_IRQCHIP, args=(IOAPIC_PINS, 0, 0, 0)))
        size = k.call(kvm, k.KVM_GET_VCPU_MMAP_SIZE)
        leaves = _cpuid(kvm)
        for apic_id in self.ids:
            fd = k.call(self.vm, k.KVM_CREATE_VCPU, apic_id)
            try:
                shared = mmap.mmap(fd, size)
            except BaseException:
                os.close(fd)
                raise
            self.vcpus.append(_Vcpu(fd, shared))
            k.call(fd, k.KVM_SET_CPUID2, leaves)
        self._map(0, 0, LOW)  # KVM_RUN needs some memory even if no instruction runs

    def _map(self, slot: int, address: int, length: int) -> None:
        region = k.kvm_userspace_memory_region(slot, 0, address, length, _code())
        k.call(self.vm, k.KVM_SET_USER_MEMORY_REGION, region)

    def _start(self, vcpu: _Vcpu, start: dict[str, Any]) -> None:
        """Put a new vCPU into a start state; UNINITIALIZED vCPUs have the registers of their reset already."""
        if start["mp"] == RUNNABLE or (start["cs"], start["ip"]) != (0xF000, 0xFFF0):
            sregs = k.kvm_sregs()
            k.call(vcpu.fd, k.KVM_GET_SREGS, sregs)
            sregs.cs.selector, sregs.cs.base = start["cs"], start["cs"] << 4
            _flat(sregs.es)
            k.call(vcpu.fd, k.KVM_SET_SREGS, sregs)
            regs = k.kvm_regs()
            k.call(vcpu.fd, k.KVM_GET_REGS, regs)
            regs.rip, regs.rflags = start["ip"], 2 | (IF if start["if"] else 0)
            k.call(vcpu.fd, k.KVM_SET_REGS, regs)
        self._set_msr(vcpu, k.MSR_IA32_APICBASE, start["base"])
        page = k.kvm_lapic_state()
        k.call(vcpu.fd, k.KVM_GET_LAPIC, page)
        regs32 = bytearray(page)
        for offset, value in to_registers(start):
            struct.pack_into("<I", regs32, offset, value)
        ctypes.memmove(addressof(page), bytes(regs32), len(regs32))
        k.call(vcpu.fd, k.KVM_SET_LAPIC, page)
        events = self._events(vcpu)
        injected, pending, masked = start["nmi"]
        events.nmi.injected, events.nmi.pending, events.nmi.masked = injected, pending, masked
        events.interrupt.injected, events.interrupt.nr = start["inj"] >= 0, max(start["inj"], 0)
        events.smi.latched_init = start["linit"]
        k.call(vcpu.fd, k.KVM_SET_VCPU_EVENTS, events)
        k.call(vcpu.fd, k.KVM_SET_MP_STATE, k.kvm_mp_state(start["mp"]))

    # What is visible

    def visible(self) -> list[dict[str, Any]]:
        """The visible state of every vCPU, in words of the format."""
        return [dict(self._visible(vcpu)) for vcpu in self.vcpus]

    def whole(self) -> list[dict[str, Any]]:
        """The visible state, and what only a look shows: for the start of a sequence, since a look accepts INIT and SIPI."""
        return [{**state, **self._look(v)} for v, state in enumerate(self.visible())]

    def _visible(self, vcpu: _Vcpu) -> dict[str, Any]:
        page, events = k.kvm_lapic_state(), self._events(vcpu)
        k.call(vcpu.fd, k.KVM_GET_LAPIC, page)
        seen = (bytes(page), bytes(events), self._get_msr(vcpu, k.MSR_IA32_APICBASE))
        if seen != vcpu.seen:
            vcpu.seen, vcpu.state = seen, to_state(seen[0], events, seen[2])
        return vcpu.state

    # Operations

    def playable(self, op: Sequence[Any]) -> bool:
        """Can this be done now?  Only an xAPIC store cannot always: its vCPU has to be known to run, with nothing to inject.

        Known is what the last `look` said, if nothing since then can have stopped the vCPU.
        """
        if op[0] != "wr" or not self._xapic(op[1]):
            return True
        events = self._events(self.vcpus[op[1]])
        quiet = not (events.nmi.injected or events.nmi.pending or events.interrupt.injected or events.smi.latched_init)
        return op[1] in self._can_store and quiet

    def do(self, op: Sequence[Any]) -> Any:
        """Do one operation of the format and return its result.

        Raises:
            NotPlayable: see playable().
            Late: the machine's time is up.
            UsageError: no such operation, or KVM refuses it.
        """
        if self._late.is_set():
            raise Late(f"the machine was not done in time, at {list(op)}")
        try:
            name, *rest = op
            action = getattr(self, f"_do_{name}", None)
            if action is None:
                raise UsageError(f"no such operation: {name}")
            return action(*rest)
        except OSError as error:
            raise UsageError(f"KVM refuses {list(op)}: {errno.errorcode.get(error.errno or 0)}, {error.strerror}") from error

    def _do_wr(self, v: int, offset: int, value: int) -> bool:
        vcpu = self.vcpus[v]
        if not self._xapic(v):
            if offset in (APIC_ICR, APIC_SELF_IPI):
                self._can_store.clear()
            return self._set_msr(vcpu, k.APIC_BASE_MSR + (offset >> 4), value)
        if not self.playable(("wr", v, offset, value)):
            raise NotPlayable(f"vCPU {v} is not known to run with nothing to inject, so it cannot store; `look` at it before")
        self._store(vcpu, (self._get_msr(vcpu, k.MSR_IA32_APICBASE) & ~0xFFF) + offset, value)
        if offset == APIC_ICR:
            self._can_store.clear()
        return True

    def _do_msi(self, address: int, data: int) -> int:
        self._can_store.clear()
        msi = k.kvm_msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        try:
            return k.call(self.vm, k.KVM_SIGNAL_MSI, msi)
        except PermissionError:
            return -1  # KVM returns -1 for "nobody", which is the number of EPERM

    def _do_nmi(self, v: int) -> None:
        self._can_store.clear()
        k.call(self.vcpus[v].fd, k.KVM_NMI)

    def _do_look(self, v: int) -> dict[str, int]:
        seen = self._look(v)
        (self._can_store.add if seen["mp"] == RUNNABLE else self._can_store.discard)(v)
        return seen

    def _do_step(self, v: int) -> None:
        self._can_store.clear()
        self._run(self.vcpus[v], KICK)

    def _do_ack(self, v: int) -> int | str | None:
        self._do_step(v)
        vcpu = self.vcpus[v]
        events = self._events(vcpu)
        acked: int | str | None = None
        if events.nmi.injected:
            acked, events.nmi.injected, events.nmi.masked = "nmi", 0, 1
        elif events.interrupt.injected:
            acked, events.interrupt.injected = int(events.interrupt.nr), 0
        if acked is not None:
            self._set_events(vcpu, events)
        return acked

    def _do_iret(self, v: int) -> None:
        self._can_store.clear()
        events = self._events(self.vcpus[v])
        events.nmi.masked = 0
        self._set_events(self.vcpus[v], events)

    def _do_if(self, v: int, on: int) -> None:
        regs = k.kvm_regs()
        k.call(self.vcpus[v].fd, k.KVM_GET_REGS, regs)
        regs.rflags = regs.rflags | IF if on else regs.rflags & ~IF
        k.call(self.vcpus[v].fd, k.KVM_SET_REGS, regs)

    def _do_setmp(self, v: int, mp: int) -> None:
        self._can_store.clear()
        k.call(self.vcpus[v].fd, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp))

    def _do_sipivec(self, v: int, vector: int) -> None:
        events = self._events(self.vcpus[v])
        events.sipi_vector = vector
        self._set_events(self.vcpus[v], events, k.KVM_VCPUEVENT_VALID_SIPI_VECTOR)

    def _do_base(self, v: int, value: int) -> bool:
        self._can_store.clear()
        return self._set_msr(self.vcpus[v], k.MSR_IA32_APICBASE, value)

    # How it is done

    def _xapic(self, v: int) -> bool:
        return self._get_msr(self.vcpus[v], k.MSR_IA32_APICBASE) & (ENABLED | EXTD) == ENABLED

    def _look(self, v: int) -> dict[str, int]:
        fd = self.vcpus[v].fd
        mp, sregs, regs = k.kvm_mp_state(), k.kvm_sregs(), k.kvm_regs()
        k.call(fd, k.KVM_GET_MP_STATE, mp)  # first: it accepts INIT and SIPI, which reset the rest
        k.call(fd, k.KVM_GET_SREGS, sregs)
        k.call(fd, k.KVM_GET_REGS, regs)
        return {"mp": mp.mp_state, "cs": sregs.cs.selector, "ip": regs.rip, "if": int(bool(regs.rflags & IF))}

    def _events(self, vcpu: _Vcpu) -> k.kvm_vcpu_events:
        events = k.kvm_vcpu_events()
        k.call(vcpu.fd, k.KVM_GET_VCPU_EVENTS, events)
        return events

    def _set_events(self, vcpu: _Vcpu, events: k.kvm_vcpu_events, flags: int = 0) -> None:
        # Without flags the NMIs that wait, a latched INIT and the SIPI vector stay as they are.
        events.flags = flags
        k.call(vcpu.fd, k.KVM_SET_VCPU_EVENTS, events)

    def _get_msr(self, vcpu: _Vcpu, index: int) -> int:
        msr = k.kvm_msr(k.kvm_msrs(1), index)
        k.call(vcpu.fd, k.KVM_GET_MSRS, msr)
        return int(msr.data)

    def _set_msr(self, vcpu: _Vcpu, index: int, value: int) -> bool:
        return k.call(vcpu.fd, k.KVM_SET_MSRS, k.kvm_msr(k.kvm_msrs(1), index, 0, value)) == 1

    def _run(self, vcpu: _Vcpu, *interrupted_by: int) -> None:
        """KVM_RUN with every signal blocked but these and LATE; being interrupted, or started by INIT (EAGAIN), is no error."""
        blocked = (1 << 64) - 1
        for number in (*interrupted_by, LATE):
            blocked &= ~(1 << number - 1)
        k.call(vcpu.fd, k.KVM_SET_SIGNAL_MASK, k.kvm_sigset(k.kvm_signal_mask(8), blocked))
        try:
            k.call(vcpu.fd, k.KVM_RUN)
        except OSError as error:
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise
        if self._late.is_set():
            raise Late("the machine was not done in time, inside KVM_RUN")

    def _store(self, vcpu: _Vcpu, address: int, value: int) -> None:
        before, sregs = k.kvm_regs(), k.kvm_sregs()
        k.call(vcpu.fd, k.KVM_GET_REGS, before)
        k.call(vcpu.fd, k.KVM_GET_SREGS, sregs)
        if sregs.cs.base == RESET:
            if not self._has_reset_page:  # few machines need it, and a slot costs as much as all the rest
                self._map(1, RESET, PAGE)
                self._has_reset_page = True
        elif sregs.cs.base not in range(0, LOW, PAGE):
            raise NotPlayable(f"the code segment at {sregs.cs.base:#x} is not one that a vCPU starts in")
        if sregs.es.limit != 0xFFFFFFFF:
            # KVM_SET_SREGS loses the low half of TPR: one more store brings it back.
            page = k.kvm_lapic_state()
            k.call(vcpu.fd, k.KVM_GET_LAPIC, page)
            _flat(sregs.es)
            self._set_regs(vcpu, before, 0)  # at the reset vector KVM_SET_SREGS would start the vCPU
            k.call(vcpu.fd, k.KVM_SET_SREGS, sregs)
            if page.regs[APIC_TASKPRI] & 0xF:
                self._set_regs(vcpu, before, (address & ~0xFFF) + APIC_TASKPRI)
                self._movs(vcpu, page.regs[APIC_TASKPRI])
        self._set_regs(vcpu, before, address)
        self._movs(vcpu, value)
        k.call(vcpu.fd, k.KVM_SET_REGS, before)

    def _set_regs(self, vcpu: _Vcpu, before: k.kvm_regs, address: int) -> None:
        """The registers with which the vCPU stores to `address`; without IF, so that no interrupt comes before the store."""
        regs = k.kvm_regs.from_buffer_copy(before)
        regs.rip, regs.rsi, regs.rdi, regs.rflags = 0, NOWHERE, address, 2
        k.call(vcpu.fd, k.KVM_SET_REGS, regs)

    def _movs(self, vcpu: _Vcpu, value: int) -> None:
        vcpu.run.exit_reason = 0
        self._run(vcpu)
        if vcpu.run.exit_reason != k.KVM_EXIT_MMIO or vcpu.run.phys_addr != NOWHERE or vcpu.run.is_write:
            raise UsageError(f"KVM does not execute the store: exit {vcpu.run.exit_reason}")
        vcpu.run.data[0] = value
        vcpu.run.immediate_exit = 1
        try:
            self._run(vcpu)
        finally:
            vcpu.run.immediate_exit = 0


def _flat(segment: k.kvm_segment) -> None:
    """A segment that reaches every address, also in real mode."""
    segment.base, segment.limit, segment.g = 0, 0xFFFFFFFF, 1


_CODE: list[tuple[mmap.mmap, int]] = []


def _code() -> int:
    """Where the memory is that every machine of this process has as its low memory: the store at the start of each page."""
    if not _CODE:
        memory = mmap.mmap(-1, LOW)
        for page in range(0, LOW, PAGE):
            memory[page : page + len(STORE)] = STORE
        _CODE.append((memory, addressof(c_char.from_buffer(memory))))
    return _CODE[0][1]


def _cpuid(kvm: int) -> k.kvm_cpuid:
    """Every CPUID leaf that KVM can give, x2APIC among them."""
    leaves = k.kvm_cpuid()
    leaves.head.nent = len(leaves.entries)
    k.call(kvm, k.KVM_GET_SUPPORTED_CPUID, leaves)
    for leaf in leaves.entries[: leaves.head.nent]:
        if leaf.function == 1:
            leaf.ecx |= 1 << 21
    return leaves
