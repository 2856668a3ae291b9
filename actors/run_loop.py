"""A vCPU reduced to its run loop: requests, mode, VM entry, sleep, migration.  [arch/x86/kvm/x86.c, virt/kvm/kvm_main.c]

No registers, no APIC, no guest program: one pass of the loop has exactly the steps by which requests, kicks and wake-ups can be
lost, so every interleaving can be visited.  What the thread does is its `body`, as for actors.thread.Thread; the functions that
a scenario may replace are reached through `vm.calls`.  The order of accesses is that of 6.16 unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from actors.actor import Actor, Cell
from actors.ops import (
    HOST_TIMER,
    IPI_PENDING,
    READ_ONCE,
    WRITE_ONCE,
    await_eq,
    cmpxchg,
    send_ipi,
    set_bit,
    smp_mb,
    smp_store_release,
    smp_wmb,
    xchg,
)
from actors.pcpu import CALLS, Pcpu
from actors.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_EVENT,
    KVM_REQ_PENDING_TIMER,
    OUTSIDE_GUEST_MODE,
    kvm_check_request,
    kvm_make_request,
    kvm_vcpu_wake_up,
)
from actors.srcu import Srcu, srcu_read_lock, srcu_read_unlock
from actors.sync import TASK_INTERRUPTIBLE, TASK_RUNNING

#: bits of a thread's flags  [arch/x86/include/asm/thread_info.h]
TIF_SIGPENDING, TIF_NEED_RESCHED = 2, 3


class VcpuLoop(Actor):
    """A vCPU's thread and the cells by which others reach it; `pcpus`: the physical CPUs it may run on, first the present one.

    Values of its own that the present step does not need any more are forgotten at checkpoints: the word of a physical CPU, which
    every step on it returns, would otherwise multiply the states.

    `work` is the state that a sender publishes with a request, `async_pf_done` the condition that a sleeper waits for.  Private:
    `seen`, the state that the request was served with; what else the body needs is given as keywords.

    What a set-up is not about costs it no step: `pi_desc`, `srcu`, `thread_flags` and `timer` are None or False then.
    """

    def __init__(
        self, vm: Any, vcpu_id: int, pcpus: list[Pcpu], body: Callable[[VcpuLoop], Coroutine[Any, Any, Any]], **private: Any
    ) -> None:
        super().__init__(vm, f"vcpu{vcpu_id}")
        self.id = vcpu_id
        self.pcpus = {pcpu.name: pcpu for pcpu in pcpus}
        self.pcpu = pcpus[0]
        self.pi_desc: Any = None  # actors.posted_intr.PiDesc, if the vCPU has APICv
        self.srcu: Srcu | None = None  # kvm->srcu, if somebody waits for its readers
        self.thread_flags: Cell | None = None  # TIF_*, if somebody sends signals to this thread or wants it to reschedule
        self.timer = False  # does a host timer fire on the physical CPU?
        self.body = body
        self.mode = self.cell("mode", OUTSIDE_GUEST_MODE)
        self.requests = self.cell("requests", 0)
        self.wait_task = self.cell("wait_task", False)
        self.task_state = self.cell("task_state", TASK_RUNNING)
        self.cpu = self.cell("cpu", self.pcpu.name)
        self.work = self.cell("work", 0)
        self.async_pf_done = self.cell("async_pf_done", False)
        self.on: str
        self.seen: int
        self.exits: bool
        self.srcu_idx: int
        self.srcu_depth: int  # read sections that the thread is in: 0 or 1, if none is forgotten
        self.private(**{"on": self.pcpu.name, "seen": 0, "exits": False, "srcu_idx": 0, "srcu_depth": 0, **private})

    def run(self) -> Coroutine[Any, Any, Any]:
        """The body is the thread."""
        return self.body(self)

    def here(self) -> Pcpu:
        """The physical CPU that runs this thread now."""
        return self.pcpus[self.on]


# ---- the loop ------------------------------------------------------------------------------------------------------------


async def vcpu_run(vcpu: VcpuLoop) -> None:
    """Serve requests, enter, run until interrupted, again.  [x86.c vcpu_run, vcpu_enter_guest, 6.16]

    `exits`: the guest makes an exit of its own, then the scheduler moves the thread to another physical CPU.
    """
    await kvm_vcpu_srcu_read_lock(vcpu)
    while True:
        vcpu.checkpoint("vcpu_run")
        if vcpu.timer:
            await vcpu.vm.calls.kvm_check_request(KVM_REQ_PENDING_TIMER, vcpu)  # kvm_inject_pending_timer_irqs()
        if await vcpu.vm.calls.kvm_check_request(KVM_REQ_EVENT, vcpu):
            await vcpu.vm.calls.inject_pending_event(vcpu)
        if await vcpu.vm.calls.vcpu_enter_guest(vcpu):
            if not await vcpu.here().vm_enter() & IPI_PENDING:
                vcpu.note("kvm_entry", vcpu=vcpu.id)
                await guest(vcpu)
                await vcpu.here().vm_exit()
            await after_vm_exit(vcpu)
            if vcpu.exits and vcpu.on == vcpu.pcpu.name:
                await vcpu_load(vcpu, next(name for name in vcpu.pcpus if name != vcpu.on))
        if await xfer_to_guest_mode_work_pending(vcpu):
            await xfer_to_guest_mode_handle_work(vcpu)


async def guest(vcpu: VcpuLoop) -> None:
    """Guest mode: an exit of its own where one is to come, else computing until an interrupt."""
    if vcpu.exits and vcpu.on == vcpu.pcpu.name:
        await vcpu.here().interrupt_window()  # an IPI that is pending now makes it leave as well
    else:
        await vcpu.here().run_until_interrupt()


async def vcpu_enter_guest(vcpu: VcpuLoop) -> bool:
    """From IRQs off to VM entry; False if there is a reason not to enter.  [x86.c vcpu_enter_guest, 5.17 and 6.16]"""
    await local_irq_disable(vcpu)  # before mode: a posted-interrupt notification then waits for VM entry
    vcpu.checkpoint("IRQs off")
    await smp_store_release(vcpu.mode, IN_GUEST_MODE)
    await kvm_vcpu_srcu_read_unlock(vcpu)
    await smp_mb()  # mode before requests, PIR and page tables: pairs with the barriers of the senders
    await sync_pir_to_irr(vcpu)
    if await vcpu.vm.calls.kvm_vcpu_exit_request(vcpu):
        await vcpu.vm.calls.cancel_entry(vcpu)
        return False
    return True


async def kvm_vcpu_exit_request(vcpu: VcpuLoop) -> bool:
    """The last check before VM entry.  [x86.c kvm_vcpu_exit_request, 5.17 and 6.16]"""
    if await READ_ONCE(vcpu.mode) == EXITING_GUEST_MODE or await READ_ONCE(vcpu.requests):
        return True
    return await xfer_to_guest_mode_work_pending(vcpu)


async def cancel_entry(vcpu: VcpuLoop) -> None:
    """The last check found a reason: back to the host.  [x86.c vcpu_enter_guest, 5.17 and 6.16]"""
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await smp_wmb()
    await local_irq_enable(vcpu)
    await kvm_vcpu_srcu_read_lock(vcpu)


async def after_vm_exit(vcpu: VcpuLoop) -> None:
    """mode first, then pending host interrupts, then what handles the exit may read.  [x86.c vcpu_enter_guest, 5.17 and 6.16]"""
    vcpu.checkpoint("VM exit")
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await smp_wmb()
    await local_irq_enable(vcpu)
    await kvm_vcpu_srcu_read_lock(vcpu)


async def local_irq_enable(vcpu: VcpuLoop) -> None:
    """IRQs on; the handler of a pending IPI runs the calls that were queued, that of a host timer makes its request."""
    pending = await vcpu.here().local_irq_enable()
    if pending & IPI_PENDING and pending & CALLS:
        await vcpu.here().run_queued_calls()
    if pending & HOST_TIMER:
        await take_host_timer(vcpu)


async def local_irq_disable(vcpu: VcpuLoop) -> None:
    """IRQs off.  A host timer that fired while they were on is taken here at the latest: it comes before the next step."""
    if vcpu.timer:
        await take_host_timer(vcpu)
    await vcpu.here().local_irq_disable()


async def take_host_timer(vcpu: VcpuLoop) -> None:
    """The handler runs on the CPU whose thread it interrupts, so nobody kicks.  [timer.c kvm_timer_fn, 2.6.31 to 3.x]"""
    if await vcpu.here().acknowledge_timer() & HOST_TIMER:
        await set_bit(KVM_REQ_PENDING_TIMER, vcpu.requests)


# ---- what else is pending for the thread, and what it must not hold meanwhile -----------------------------------------------


async def xfer_to_guest_mode_work_pending(vcpu: VcpuLoop) -> bool:
    """A signal, or somebody else to run?  [include/linux/entry-kvm.h; need_resched() || signal_pending() before 5.9]"""
    return vcpu.thread_flags is not None and bool(await READ_ONCE(vcpu.thread_flags))


async def xfer_to_guest_mode_handle_work(vcpu: VcpuLoop) -> None:
    """schedule(), or out to userspace, which takes the signal and comes back.  [kernel/entry/kvm.c; x86.c vcpu_run, 5.17]"""
    assert vcpu.thread_flags is not None
    await kvm_vcpu_srcu_read_unlock(vcpu)
    await xchg(vcpu.thread_flags, 0)
    await kvm_vcpu_srcu_read_lock(vcpu)


async def kvm_vcpu_srcu_read_lock(vcpu: VcpuLoop) -> None:
    """vcpu->srcu_idx: from here on memslots and the like stay.  [kvm_host.h since 5.19; srcu_read_lock() itself before]"""
    if vcpu.srcu is not None:
        vcpu.srcu_idx = await srcu_read_lock(vcpu, vcpu.srcu)
        vcpu.srcu_depth += 1


async def kvm_vcpu_srcu_read_unlock(vcpu: VcpuLoop) -> None:
    """Before guest mode and before sleep: both may last for ever, and so would synchronize_srcu().  [kvm_host.h]"""
    if vcpu.srcu is not None:
        await srcu_read_unlock(vcpu, vcpu.srcu, vcpu.srcu_idx)
        vcpu.srcu_depth -= 1


async def sync_pir_to_irr(vcpu: VcpuLoop) -> None:
    """What was posted while the vCPU was in the host.  [kvm_x86_ops.sync_pir_to_irr]"""
    if vcpu.pi_desc is not None:
        await vcpu.vm.calls.vmx_sync_pir_to_irr(vcpu)


async def inject_pending_event(vcpu: VcpuLoop) -> None:
    """KVM_REQ_EVENT: look at what was published with the request.  [x86.c, here one cell]"""
    vcpu.seen = await READ_ONCE(vcpu.work)


async def vcpu_load(vcpu: VcpuLoop, pcpu: str) -> None:
    """The scheduler runs the thread on another physical CPU; the switch is a full barrier.  [x86.c kvm_arch_vcpu_load]"""
    await smp_mb()
    vcpu.on = pcpu
    await WRITE_ONCE(vcpu.cpu, pcpu)
    await smp_mb()


# ---- who makes it look -----------------------------------------------------------------------------------------------------


async def publish(me: Actor, vcpu: VcpuLoop, work: int) -> None:
    """A sender: publish, request, kick.  [as lapic.c __apic_accept_irq does, 6.16]"""
    await WRITE_ONCE(vcpu.work, work)
    await vcpu.vm.calls.kvm_make_request(KVM_REQ_EVENT, vcpu)
    await vcpu.vm.calls.kvm_vcpu_kick(me, vcpu)


async def kvm_vcpu_kick(me: Actor, vcpu: VcpuLoop) -> None:
    """Wake the vCPU if it sleeps, else force it out of guest mode.  [kvm_main.c __kvm_vcpu_kick, 6.16]"""
    if await kvm_vcpu_wake_up(me, vcpu):
        return
    if await kvm_vcpu_exiting_guest_mode(vcpu) == IN_GUEST_MODE:
        await send_ipi(await READ_ONCE(vcpu.cpu))


async def kvm_vcpu_exiting_guest_mode(vcpu: VcpuLoop) -> int:
    """Requests before mode: pairs with the barrier after mode in vcpu_enter_guest().  [kvm_host.h, 6.16]"""
    await smp_mb()  # smp_mb__before_atomic()
    mode: int = await cmpxchg(vcpu.mode, IN_GUEST_MODE, EXITING_GUEST_MODE)
    return mode


# ---- sleep -----------------------------------------------------------------------------------------------------------------


async def vcpu_halt(vcpu: VcpuLoop) -> None:
    """HLT: sleep until there is something to do, then do it.  [x86.c kvm_emulate_halt, vcpu_block]"""
    await kvm_vcpu_srcu_read_lock(vcpu)
    while not vcpu.seen:
        vcpu.checkpoint("vcpu_halt")
        if await vcpu.vm.calls.kvm_emulate_halt(vcpu):
            await vcpu.vm.calls.vcpu_block(vcpu)
        vcpu.seen = int(await xchg(vcpu.async_pf_done, False))
    await kvm_vcpu_srcu_read_unlock(vcpu)


async def vcpu_block(vcpu: VcpuLoop) -> None:
    """Out of the read section, sleep, into one again.  [x86.c vcpu_block, 5.17]"""
    await kvm_vcpu_srcu_read_unlock(vcpu)
    await vcpu.vm.calls.kvm_vcpu_block(vcpu)
    await kvm_vcpu_srcu_read_lock(vcpu)


async def kvm_emulate_halt(vcpu: VcpuLoop) -> bool:
    """To sleep?  Not if there is something to do already.  [x86.c __kvm_emulate_halt looks for events, 6.16]"""
    return not await READ_ONCE(vcpu.async_pf_done)


async def kvm_vcpu_block(vcpu: VcpuLoop) -> None:
    """The task state is set before the condition is read.  [kvm_main.c kvm_vcpu_block, 6.16]"""
    await WRITE_ONCE(vcpu.wait_task, True)  # prepare_to_rcuwait()
    while True:
        vcpu.checkpoint("kvm_vcpu_block")
        await xchg(vcpu.task_state, TASK_INTERRUPTIBLE)  # set_current_state(): store and full barrier
        if await vcpu.vm.calls.kvm_vcpu_check_block(vcpu):
            break
        await await_eq(vcpu.task_state, TASK_RUNNING)  # schedule()
    await finish_rcuwait(vcpu)


async def finish_rcuwait(vcpu: VcpuLoop) -> None:
    """Off the wait object, and running.  [rcuwait.h]"""
    await WRITE_ONCE(vcpu.wait_task, False)
    await WRITE_ONCE(vcpu.task_state, TASK_RUNNING)


async def kvm_vcpu_check_block(vcpu: VcpuLoop) -> bool:
    """Is there a reason not to sleep?  [kvm_main.c, x86.c kvm_arch_vcpu_runnable]"""
    if vcpu.pi_desc is not None and await vcpu.vm.calls.pi_has_pending_interrupt(vcpu):
        return True
    return bool(await READ_ONCE(vcpu.async_pf_done))


async def signal_wake_up(vcpu: VcpuLoop) -> None:
    """Another thread of the VMM sends a signal to one that runs.  [kernel/signal.c signal_wake_up_state(), kick_process()]"""
    assert vcpu.thread_flags is not None
    await set_bit(TIF_SIGPENDING, vcpu.thread_flags)
    await resched_cpu(vcpu)


async def resched_curr(vcpu: VcpuLoop) -> None:
    """Another CPU wants this one to run somebody else.  [kernel/sched/core.c resched_curr]"""
    assert vcpu.thread_flags is not None
    await set_bit(TIF_NEED_RESCHED, vcpu.thread_flags)
    await resched_cpu(vcpu)


async def resched_cpu(vcpu: VcpuLoop) -> None:
    """An IPI whatever vcpu->mode is: the flag is looked at on the way out of its handler, or at VM entry."""
    await send_ipi(await READ_ONCE(vcpu.cpu))  # task_cpu(): the thread is running


async def async_pf_execute(me: Actor, vcpu: VcpuLoop) -> None:
    """The page is there: say so, then wake.  [async_pf.c async_pf_execute, 6.16; a list there, one flag here]"""
    await WRITE_ONCE(vcpu.async_pf_done, True)
    await kvm_vcpu_wake_up(me, vcpu)


#: what a scenario may replace
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        kvm_check_request,
        kvm_make_request,
        vcpu_enter_guest,
        kvm_vcpu_exit_request,
        cancel_entry,
        inject_pending_event,
        publish,
        kvm_vcpu_kick,
        kvm_emulate_halt,
        vcpu_block,
        kvm_vcpu_block,
        kvm_vcpu_check_block,
        async_pf_execute,
    )
}


# ---- the same accesses in another order, or some missing: what mutants and older versions are made of --------------------------

ENTRY: dict[str, Callable[[VcpuLoop], Any]] = {
    "irq_off": lambda vcpu: local_irq_disable(vcpu),
    "irq_on": lambda vcpu: local_irq_enable(vcpu),
    "mode": lambda vcpu: WRITE_ONCE(vcpu.mode, IN_GUEST_MODE),
    "srcu": lambda vcpu: kvm_vcpu_srcu_read_unlock(vcpu),
    "mb": lambda vcpu: smp_mb(),
    "wmb": lambda vcpu: smp_wmb(),
    "sync": sync_pir_to_irr,
    "check": lambda vcpu: vcpu.vm.calls.kvm_vcpu_exit_request(vcpu),
}


def entry_in_order(accesses: str) -> Callable[[VcpuLoop], Coroutine[Any, Any, bool]]:
    """A vcpu_enter_guest() made of these accesses; "irq_off, mode, srcu, mb, sync, check" is today's.

    mode is a plain store here, a release there: what comes before it is state of the CPU itself.
    """

    async def enter_in_order(vcpu: VcpuLoop) -> bool:
        for i, access in enumerate(accesses.split(", ")):
            vcpu.checkpoint(f"entry {i}")
            found = await ENTRY[access](vcpu)
            if access == "check" and found:
                await vcpu.vm.calls.cancel_entry(vcpu)
                return False
        return True

    return enter_in_order


SLEEP: dict[str, Callable[[VcpuLoop], Any]] = {
    "queue": lambda vcpu: WRITE_ONCE(vcpu.wait_task, True),
    "state": lambda vcpu: xchg(vcpu.task_state, TASK_INTERRUPTIBLE),
    "plain state": lambda vcpu: WRITE_ONCE(vcpu.task_state, TASK_INTERRUPTIBLE),
    "check": lambda vcpu: vcpu.vm.calls.kvm_vcpu_check_block(vcpu),
    "schedule": lambda vcpu: await_eq(vcpu.task_state, TASK_RUNNING),
}


def block_in_order(once: str, loop: str) -> Callable[[VcpuLoop], Coroutine[Any, Any, None]]:
    """A kvm_vcpu_block() made of these accesses; "queue" and "state, check, schedule" are today's."""

    async def sleep_in_order(vcpu: VcpuLoop) -> None:
        for access in once.split(", "):
            await SLEEP[access](vcpu)
        while True:
            vcpu.checkpoint("kvm_vcpu_block")
            for access in loop.split(", "):
                found = await SLEEP[access](vcpu)
                if access == "check" and found:
                    await finish_rcuwait(vcpu)
                    return

    return sleep_in_order
