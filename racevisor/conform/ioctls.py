"""KVM's ioctls from Python's standard library: the numbers, the structures, and one call whose errors are words.

Only what a conformance run needs.  A number is computed from its structure, as the kernel's _IOC() does it, so that a
structure of the wrong size gives a number that the kernel does not know.

Source: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h and include/uapi/asm-generic/ioctl.h, Linux 6.18.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from ctypes import Array, Structure, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from pathlib import Path
from typing import NamedTuple

from racevisor.errors import UsageError

DEVICE = Path("/dev/kvm")

KVMIO = 0xAE
KVM_API_VERSION = 12

KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_X2APIC_API = 129
KVM_CAP_IMMEDIATE_EXIT = 136
NEEDED = {
    "KVM_CAP_SPLIT_IRQCHIP": KVM_CAP_SPLIT_IRQCHIP,
    "KVM_CAP_X2APIC_API": KVM_CAP_X2APIC_API,
    "KVM_CAP_IMMEDIATE_EXIT": KVM_CAP_IMMEDIATE_EXIT,
}
KVM_EXIT_MMIO = 6
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x2

MSR_IA32_APICBASE = 0x1B
APIC_BASE_MSR = 0x800

# Which of these modules is loaded says how this KVM runs a guest; the local APIC is kvm's own and the same in all.
VENDOR_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")


class kvm_enable_cap(Structure):
    """Switches on what KVM leaves off; `args` depend on `cap`."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class kvm_userspace_memory_region(Structure):
    """A memory slot; addresses and size are bytes, in whole pages."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class kvm_msi(Structure):
    """A message-signalled interrupt, as a device would write it."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )


class kvm_mp_state(Structure):
    """Is the vCPU running, halted, or waiting to be started?"""

    _fields_ = (("mp_state", c_uint32),)


class kvm_regs(Structure):
    """The general registers."""

    _fields_ = (
        *((name, c_uint64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")),  # the kernel's order
        *((name, c_uint64) for name in ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags")),
    )


class kvm_segment(Structure):
    """A segment register with what the processor keeps hidden of it."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        *((name, c_uint8) for name in ("present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    )


class kvm_dtable(Structure):
    """Where a descriptor table is."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class kvm_sregs(Structure):
    """Segments and control registers."""

    _fields_ = (
        *((name, kvm_segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, kvm_dtable) for name in ("gdt", "idt")),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class _exception(Structure):
    _fields_ = (
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    )


class _interrupt(Structure):
    _fields_ = (("injected", c_uint8), ("nr", c_uint8), ("soft", c_uint8), ("shadow", c_uint8))


class _nmi(Structure):
    _fields_ = (("injected", c_uint8), ("pending", c_uint8), ("masked", c_uint8), ("pad", c_uint8))


class _smi(Structure):
    _fields_ = (("smm", c_uint8), ("pending", c_uint8), ("smm_inside_nmi", c_uint8), ("latched_init", c_uint8))


class kvm_vcpu_events(Structure):
    """What is being injected into the vCPU, and what waits for that."""

    _fields_ = (
        ("exception", _exception),
        ("interrupt", _interrupt),
        ("nmi", _nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", _smi),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


class kvm_lapic_state(Structure):
    """The page of the local APIC: a register of 32 bits every 16 bytes."""

    _fields_ = (("regs", c_uint8 * 1024),)


class kvm_msrs(Structure):
    """The head of what KVM_GET_MSRS and KVM_SET_MSRS take; entries follow it."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


class kvm_msr(Structure):
    """The same with room for the one entry that we ever pass."""

    _fields_ = (("head", kvm_msrs), ("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class kvm_cpuid2(Structure):
    """The head of a list of CPUID leaves; entries follow it."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


class kvm_cpuid_entry2(Structure):
    """One leaf of CPUID."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("pad", c_uint32 * 3),
    )


class kvm_cpuid(Structure):
    """The same with room for every leaf that KVM has."""

    _fields_ = (("head", kvm_cpuid2), ("entries", kvm_cpuid_entry2 * 256))


class kvm_signal_mask(Structure):
    """The head of KVM_SET_SIGNAL_MASK; the set follows it."""

    _fields_ = (("len", c_uint32),)


class kvm_sigset(Structure):
    """The same with the set: signal n is bit n - 1.  Packed, as the kernel reads it right after the length."""

    _pack_ = 4
    _fields_ = (("head", kvm_signal_mask), ("blocked", c_uint64))


class kvm_run_mmio(Structure):
    """The head of the page shared with the kernel, as it is after KVM_EXIT_MMIO."""

    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("flags", c_uint32),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("phys_addr", c_uint64),
        ("data", c_uint32 * 2),
        ("len", c_uint32),
        ("is_write", c_uint8),
    )


def _IO(number: int) -> int:
    return KVMIO << 8 | number


def _IOW(number: int, argument: type[Structure]) -> int:
    return 1 << 30 | sizeof(argument) << 16 | _IO(number)


def _IOR(number: int, argument: type[Structure]) -> int:
    return 2 << 30 | sizeof(argument) << 16 | _IO(number)


def _IOWR(number: int, argument: type[Structure]) -> int:
    return 3 << 30 | sizeof(argument) << 16 | _IO(number)


KVM_GET_API_VERSION = _IO(0x00)
KVM_CREATE_VM = _IO(0x01)
KVM_CHECK_EXTENSION = _IO(0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(0x04)
KVM_GET_SUPPORTED_CPUID = _IOWR(0x05, kvm_cpuid2)
KVM_CREATE_VCPU = _IO(0x41)
KVM_SET_USER_MEMORY_REGION = _IOW(0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = _IO(0x47)
KVM_RUN = _IO(0x80)
KVM_GET_REGS = _IOR(0x81, kvm_regs)
KVM_SET_REGS = _IOW(0x82, kvm_regs)
KVM_GET_SREGS = _IOR(0x83, kvm_sregs)
KVM_SET_SREGS = _IOW(0x84, kvm_sregs)
KVM_GET_MSRS = _IOWR(0x88, kvm_msrs)
KVM_SET_MSRS = _IOW(0x89, kvm_msrs)
KVM_SET_SIGNAL_MASK = _IOW(0x8B, kvm_signal_mask)
KVM_GET_LAPIC = _IOR(0x8E, kvm_lapic_state)
KVM_SET_LAPIC = _IOW(0x8F, kvm_lapic_state)
KVM_SET_CPUID2 = _IOW(0x90, kvm_cpuid2)
KVM_GET_MP_STATE = _IOR(0x98, kvm_mp_state)
KVM_SET_MP_STATE = _IOW(0x99, kvm_mp_state)
KVM_NMI = _IO(0x9A)
KVM_GET_VCPU_EVENTS = _IOR(0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = _IOW(0xA0, kvm_vcpu_events)
KVM_ENABLE_CAP = _IOW(0xA3, kvm_enable_cap)
KVM_SIGNAL_MSI = _IOW(0xA5, kvm_msi)


class NoKvm(UsageError):
    """There is no KVM here that a conformance run could use.  The message is one line and says why."""


class Host(NamedTuple):
    """Which kernel and which module of KVM answered."""

    release: str  # as uname -r has it
    module: str  # kvm_intel, kvm_amd, kvm_pvm, or "unknown module"

    def __str__(self) -> str:
        return f"Linux {self.release}, {self.module}"


def this_host(modules: Path = Path("/sys/module")) -> Host:
    """The kernel and the module of this machine; `modules` is where loaded modules are listed as folders."""
    loaded = [name for name in VENDOR_MODULES if (modules / name).is_dir()]
    # A distribution may load or build in both: what is in use cannot be told then, so both are named.
    return Host(platform.release(), "+".join(loaded) or "unknown module")


def call(fd: int, request: int, argument: Structure | Array[c_uint8] | int = 0) -> int:
    """ioctl(2), with an integer or with a structure that the kernel may read and write; raises OSError."""
    if isinstance(argument, int):
        return fcntl.ioctl(fd, request, argument)
    result: int = fcntl.ioctl(fd, request, argument, True)
    return result


def open_kvm(device: Path = DEVICE) -> int:
    """A descriptor of `device`, which is a KVM that can do what a conformance run needs.

    Raises:
        NoKvm: it is missing, not for us, no KVM, or too old a KVM.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoKvm(f"{device} is missing: load kvm_intel or kvm_amd, or use a machine that can virtualise") from None
    except PermissionError:
        raise NoKvm(f"{device} is not readable and writable for you: join its group, or run as root") from None
    except OSError as error:
        raise NoKvm(f"{device} cannot be opened: {error.strerror}") from None
    try:
        _probe(fd, device)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _probe(fd: int, device: Path) -> None:
    try:
        version = call(fd, KVM_GET_API_VERSION)
    except OSError:
        raise NoKvm(f"{device} is not a KVM device") from None
    if version != KVM_API_VERSION:
        raise NoKvm(f"{device} speaks version {version} of KVM's interface, and {KVM_API_VERSION} is needed")
    for name, cap in NEEDED.items():
        if call(fd, KVM_CHECK_EXTENSION, cap) <= 0:
            raise NoKvm(f"{device} has no {name}: Linux 4.13 or later is needed")


def create_vm(kvm: int, device: Path = DEVICE) -> int:
    """A descriptor of a new virtual machine; raises NoKvm if none is to be had."""
    try:
        return call(kvm, KVM_CREATE_VM)
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error))
        raise NoKvm(f"{device} makes no virtual machine: KVM_CREATE_VM says {said}") from None


def why_not(device: Path = DEVICE) -> str | None:
    """Why no conformance run is possible with `device`, in one line; None if one is."""
    try:
        kvm = open_kvm(device)
        try:
            os.close(create_vm(kvm, device))
        finally:
            os.close(kvm)
    except NoKvm as error:
        return str(error)
    return None
