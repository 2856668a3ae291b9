"""Requests, kicks and wake-ups that get lost: the store/load duels at the heart of KVM's vCPU loop.

One thread wants a vCPU to look at something.  It stores what is new, then reads where the vCPU is: in the guest (send an IPI),
asleep (wake it), anywhere else (nothing: it will look).  The vCPU stores where it is, then reads what is new.  Either side must
see the other's store, which takes a full barrier on both; and an IPI counts only where it finds guest mode or IRQs off.

* entry: vcpu->mode against vcpu->requests.  Lost if the last look comes before mode = IN_GUEST_MODE (before e9571ed54b2a); that
  fix put smp_wmb() between them, which orders no load: "fix_2008" is lost under tso, and since 6b7e2d099148 it is a full barrier.
* sleep: the task state against the condition.  Lost if the condition is read first (before e5c239cfd5b0).
* flush: all vCPUs are asked, and their CPUs have to answer.  If a set bit is taken for "somebody has asked already",
  the second one returns while the first one's IPI is still on its way (before 84261923d3dd), and frees a page in use.
* walk: mode = READING_SHADOW_PAGE_TABLES against the sptes, with IRQs off.  Who frees a shadow page waits for walkers, too.
* posted: PID.ON against vcpu->mode, with no request.  PIR must be synced after mode and with IRQs off (b95234c84004).

The host tells the thread as well, and looks at no mode: a signal and need_resched send their IPI wherever the thread is, and a
timer of the host interrupts whoever runs on its CPU.  What comes while IRQs are on is gone with its handler, so the last check
must look for them too, with IRQs off.  Until 06e056456612 and d4acf7e7abe4 requests were looked at before IRQs went off, and
not again ("before", "V-M5").  And guest mode and sleep may last for ever: who is in one of them must be in no SRCU read section,
or who changes memslots waits as long.

"before" has all but walk as they were before their fixes; they are years apart.  2.6.24 looked at requests before IRQs went off
("before"), and at pending interrupts between that and guest_mode = 1 ("V-M4"); 2.6.26 moved the second look behind guest_mode
("fix_2008").  A pending interrupt is a request here, as it is since KVM_REQ_EVENT (3842d135ff24).

What a look into the sources and the search showed.  set_bit() of a request is a locked instruction on x86, so a kicker without
its barrier loses nothing there ("V-M3_bit"); V-M3 posts the request by a plain store as well.  The order mode, mb, IRQs off (3.8)
harms posted interrupts only because PIR was synced before mode then ("V-M8"); a sync after IRQs off is safe there ("V-M8_sync").
V-M16's missing barrier lets the CPU load early, which no model here does: "V-M16_early" takes the load where it could go.
"srcu" shows V-M1 harmless: srcu_read_unlock() of later kernels, between mode and the check, is a full barrier, and so the one
that 6.16 names smp_mb__after_srcu_read_unlock() is none of its own.  3.8 left the read section after the last check: that is as
good, and no variant.

Modelled: the vCPU's loop as its accesses to mode, requests, thread flags, task state, PIR, SRCU counters and IRQ flag; physical
CPUs, IPIs, function calls that wait.  Left out: registers, APIC, vcpu->mutex, a vCPU that kicks itself, the MMU roots' loading,
the fastpath that enters again without leaving the loop, signals to a sleeper, the read section of kvm_vcpu_check_block()'s own.
A posted-interrupt notification and a kick are not told apart by vector (no set-up sends both).
"""

from collections.abc import Callable, Iterator
from typing import Any

from actors import kick_mutants as wrong
from actors import posted_intr, remote_flush, run_loop
from actors.actor import Cell
from actors.ops import CALL_QUEUED, IN_GUEST, IRQS_OFF, Code
from actors.pcpu import Pcpu
from actors.posted_intr import PiDesc, vcpu_run_posted
from actors.remote_flush import FREED, Mmu, flush, kvm_mmu_walk, mmu_of, vcpu_run_with_tlb, zap_and_free
from actors.requests import EXITING_GUEST_MODE, IN_GUEST_MODE
from actors.run_loop import VcpuLoop, block_in_order, entry_in_order, resched_curr, signal_wake_up, vcpu_halt, vcpu_run
from actors.srcu import Srcu, synchronize_srcu_expedited
from actors.sync import TASK_INTERRUPTIBLE
from racevisor import Always, Claim, Monitor, Scenario, Setup, Sometimes, Step, Thread, Variant, Violation, Vm


def entry(accesses: str) -> dict[str, Callable[..., Any]]:
    """vcpu_enter_guest() with these accesses in this order."""
    return {"vcpu_enter_guest": entry_in_order(accesses)}


def block(once: str, loop: str) -> dict[str, Callable[..., Any]]:
    """kvm_vcpu_block() with these accesses in this order."""
    return {"kvm_vcpu_block": block_in_order(once, loop)}


# ---- older versions
IRQ_OFF_LAST = {"V-I2": "IRQs go off after mode = IN_GUEST_MODE in this order"}
COALESCED = {"kvm_make_all_cpus_request": remote_flush.make_all_cpus_request_coalesced}
CHECK_FIRST = block("queue", "check, state, schedule")
BEFORE = {**entry("sync, check, irq_off, mode"), **CHECK_FIRST, **COALESCED}

NO_MB: dict[str, Callable[..., Any]] = {
    "kvm_vcpu_kick": wrong.kick_without_mb,
    "kvm_request_needs_ipi": wrong.needs_ipi_without_mb,
}
REQUESTED: dict[str, Callable[..., Any]] = {
    "vmx_deliver_posted_interrupt": posted_intr.deliver_with_request,
    "guest_interrupted": posted_intr.leave_the_guest,
    "vmx_sync_pir_to_irr": posted_intr.take_pir,
}

ENTRIES = ("entry", "rearm", "migrate")
ENTERS = (*ENTRIES, "flush_halted", "posted")
HOST = ("signal", "resched", "timer")  # told by the host, which does not look at mode
SRCU = ("V-I8", "V-I8_cancel", "V-I8_sleep")
WEAK: dict[str, str] = {"tso": Sometimes, "pso": Sometimes}
PSO: Claim = {"pso": Sometimes}


def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)


class Writers(Monitor):
    """V-I3 and V-I7: of mode, others only make EXITING of IN_GUEST_MODE; of what is posted to a vCPU, they take nothing away."""

    def __init__(self, check: str, vcpu: VcpuLoop, cell: Cell) -> None:
        super().__init__([cell])
        self.check, self.vcpu = check, vcpu

    def on_step(self, step: Step) -> Violation | None:
        if not step.writes or step.thread == self.vcpu.name:
            return None
        if self.check == "V-I3":
            allowed = (step.before, step.after) == (IN_GUEST_MODE, EXITING_GUEST_MODE)
        else:
            allowed = not step.before & ~step.after
        text = f"{step.thread} changed {self.vcpu.name}'s {self.watches[0].name} from {step.before:#x} to {step.after:#x}"
        return None if allowed else Violation(self.check, text, (step.n,))


class IrqsOff(Monitor):
    """V-I2: IRQs are off when a vCPU says IN_GUEST_MODE, and stay off until VM entry.

    It is about the program's order, which a store that lands late says nothing of: so it judges under sc only.  The second half
    needs the IRQ flag watched (`until_entry`), which makes every IPI a thing to order; one set-up is enough for one program.
    """

    check = "V-I2"

    def __init__(self, vcpu: VcpuLoop, until_entry: bool) -> None:
        cpus = [pcpu.cpu for pcpu in vcpu.pcpus.values()]
        super().__init__([vcpu.mode, *cpus] if until_entry else [vcpu.mode], reads=cpus, entering=0)
        self.vcpu, self.cpus = vcpu, cpus

    def on_step(self, step: Step) -> Violation | None:
        if step.kind != 0 or not step.writes or step.thread != self.vcpu.name:
            return None
        if step.cell is self.vcpu.mode:
            self.ghost["entering"] = int(step.after == IN_GUEST_MODE)
            if not self.ghost["entering"] or any(cell.value & IRQS_OFF for cell in self.cpus):
                return None
            return Violation(self.check, f"{step.thread} says IN_GUEST_MODE with IRQs on", (step.n,))
        if self.ghost["entering"] and step.before & IRQS_OFF and not step.after & IRQS_OFF:
            return Violation(self.check, f"{step.thread} turns IRQs on between IN_GUEST_MODE and VM entry", (step.n,))
        return None


class PageUse(Monitor):
    """V-I4: nobody uses a page after it was freed."""

    check = "V-I4"

    def on_step(self, step: Step) -> Violation | None:
        if step.writes:
            self.where["freed"] = step.n
        elif step.op.code == Code.LOAD and step.result == FREED:
            return Violation(self.check, f"{step.thread} uses a page that was freed", (self.where["freed"], step.n))
        return None


class VcpuRequests(Scenario):
    """What a vCPU is told while it enters, sleeps, walks a page table or runs; more vCPUs are told by one thread each."""

    name = "vcpu_requests"
    patch = "e9571ed54b2a, e5c239cfd5b0, 84261923d3dd, b95234c84004: the races of the vCPU loop (2008 to 2017)"
    vcpus = 1
    max_vcpus = 1024
    fixed = "today"
    live = "posted"
    functions = {**run_loop.FUNCTIONS, **remote_flush.FUNCTIONS, **posted_intr.FUNCTIONS}
    setups = {
        "entry": Setup("a request and a kick while the vCPU enters a guest that computes for ever"),
        "rearm": Setup("two requests of one kind, each with new work"),
        "migrate": Setup("entry, and the vCPU moves to another physical CPU after its first exit"),
        "sleep": Setup("an async page fault is done while the vCPU halts"),
        "flush": Setup("the guest runs with a page in its TLB; one thread frees that page, another one flushes too"),
        "flush_halted": Setup("a page is freed while the vCPU, which has it in its TLB, is woken from HLT and enters"),
        "walker": Setup("a shadow page is freed while the vCPU walks it without a lock"),
        "posted": Setup("two posted interrupts while the vCPU enters a guest that computes for ever"),
        "posted_halt": Setup("a posted interrupt to a guest that halts"),
        "signal": Setup("a signal for the vCPU's thread while it enters"),
        "resched": Setup("another task is to run on its CPU while it enters"),
        "timer": Setup("a timer of the host fires on the vCPU's own physical CPU while it enters: its handler makes a request"),
        "srcu": Setup("somebody waits for all SRCU readers while the vCPU enters and is kicked", ("today", "V-M1", *SRCU)),
        "srcu_halt": Setup("who waits for all SRCU readers is the one who wakes the vCPU", ("today", "V-M12", *SRCU)),
    }
    variants = {
        "before": Variant("each function before its fix (2008 to 2016)", BEFORE,
                          sometimes(*ENTERS, *HOST, "flush", "sleep", "posted_halt")),
        "fix_2008": Variant("V-M2, e9571ed54b2a: mode before the check, but with smp_wmb()",
                            entry("irq_off, mode, wmb, sync, check"), sometimes(*ENTERS, word=WEAK)),
        "3.8": Variant("V-M8: IRQs off after mode; PIR synced when it is injected (3.8 to 4.9)",
                       entry("sync, mode, mb, irq_off, check"), sometimes("posted"), IRQ_OFF_LAST),
        "today": Variant("6.16"),
        "V-M1": Variant("no full barrier after mode", entry("irq_off, mode, srcu, sync, check"), sometimes(*ENTERS, word=WEAK)),
        "V-M3": Variant("no barrier in the kicker, and its request is a plain store",
                        {"kvm_make_request": wrong.request_by_store, **NO_MB},
                        sometimes(*ENTRIES, "flush_halted", "walker", word=WEAK)),
        "V-M3_bit": Variant("no barrier in the kicker: set_bit() is locked on x86", NO_MB),
        "V-M3_wmb": Variant("kvm_make_request() without smp_wmb(): hidden by x86",
                            {"kvm_make_request": wrong.request_without_wmb},
                            sometimes(*ENTRIES, word=PSO)),
        "V-M4": Variant("the last check before mode", entry("irq_off, check, mode, mb, sync"),
                        sometimes(*ENTRIES, "flush_halted")),
        "V-M5": Variant("no last check at all (V-4: only at the top of the loop)", entry("irq_off, mode, mb, sync"),
                        sometimes(*ENTRIES, *HOST, "flush_halted")),
        "V-4_work": Variant("the last check does not look for signals and need_resched()",
                            {"kvm_vcpu_exit_request": wrong.exit_request_without_work}, sometimes("signal", "resched")),
        "V-M7": Variant("the last check before IRQs are off",
                        entry("mode, mb, sync, check, irq_off"), sometimes(*ENTERS, *HOST), IRQ_OFF_LAST),
        "V-M8_no_mb": Variant("V-M8 without its barrier", entry("mode, irq_off, sync, check"), sometimes(*ENTERS, word=WEAK),
                              IRQ_OFF_LAST),
        "V-M8_sync": Variant("V-M8, but PIR is synced after IRQs are off: harmless", entry("mode, mb, irq_off, sync, check"), {},
                             IRQ_OFF_LAST),
        "V-6a": Variant("PIR synced after mode and before IRQs are off", entry("mode, mb, sync, irq_off, check"),
                        sometimes("posted"), IRQ_OFF_LAST),
        "V-6b": Variant("PIR synced before mode", entry("irq_off, sync, mode, mb, check"), sometimes("posted")),
        "V-6_request": Variant("3.10 to 4.9: a posted interrupt makes a request as well",
                               {**entry("sync, mode, mb, irq_off, check"), **REQUESTED}, {}, IRQ_OFF_LAST),
        "V-6_on_first": Variant("ON is set before PIR", {"vmx_deliver_posted_interrupt": posted_intr.deliver_on_first},
                                sometimes("posted", "posted_halt")),
        "V-6_pir_first": Variant("PIR is taken before ON is cleared", {"vmx_sync_pir_to_irr": posted_intr.sync_pir_first},
                                 sometimes("posted")),
        "V-6_plain": Variant("PIR and ON by plain stores: nothing orders them before the load of mode",
                             {"vmx_deliver_posted_interrupt": posted_intr.deliver_unordered},
                             sometimes("posted", "posted_halt", word=WEAK)),
        "V-6_blind": Variant("a halting vCPU looks at IRR, not at PID.ON", {"pi_has_pending_interrupt": posted_intr.blind_to_pir},
                             sometimes("posted_halt")),
        "V-7": Variant("a kick without a request, and a vCPU that looks before each entry",
                       {"publish": wrong.publish_without_request, "kvm_check_request": wrong.look_always}, sometimes(*ENTRIES)),
        "V-M9": Variant("the condition before the task state", CHECK_FIRST, sometimes("sleep", "posted_halt", "flush_halted")),
        "V-M10": Variant("on the wait object after the condition", block("state", "check, queue, schedule, state"),
                         sometimes("sleep", "posted_halt", "flush_halted")),
        "V-M11": Variant("V-3: the waker looks who sleeps before it stores the condition", {"async_pf_execute": wrong.wake_first},
                         sometimes("sleep", "flush_halted")),
        "V-M12": Variant("waker without a full barrier", {"async_pf_execute": wrong.wake_without_mb},
                         sometimes("sleep", "srcu_halt", "flush_halted", word=WEAK)),
        "V-M12_state": Variant("sleeper without a full barrier", block("queue", "plain state, check, schedule"),
                               sometimes("sleep", "posted_halt", "flush_halted", word=WEAK)),
        "V-M13": Variant("all-CPU requests are coalesced on the bit, no lock", COALESCED, sometimes("flush")),
        "V-M14": Variant("84261923d3dd: the same under a lock, until all have answered",
                         {"kvm_make_all_cpus_request": remote_flush.make_all_cpus_request_locked}),
        "V-M16": Variant("no barrier after a request is cleared: no model here reorders loads",
                         {"kvm_check_request": wrong.check_without_mb}),
        "V-M16_early": Variant("V-I7: the work is loaded before the request is cleared, as V-M16 permits",
                               {"kvm_check_request": wrong.check_work_early,
                                "inject_pending_event": wrong.inject_what_was_loaded},
                               sometimes("rearm")),
        "V-M17": Variant("a kick of a vCPU that is EXITING sends an IPI too: harmless",
                           {"kvm_vcpu_kick": wrong.kick_exiting_too}),
        "V-M18": Variant("who waits takes EXITING for OUTSIDE", {"kvm_request_needs_ipi": wrong.exiting_is_outside},
                         sometimes("flush")),
        "V-M18_reading": Variant("who waits takes all but IN_GUEST_MODE for OUTSIDE",
                                 {"kvm_request_needs_ipi": wrong.in_guest_only},
                                 sometimes("flush", "walker")),
        "V-M18_wait": Variant("who flushes does not wait", {"smp_call_function_many": remote_flush.call_without_wait},
                              sometimes("flush", "flush_halted", "walker")),
        "V-M19": Variant("vcpu->cpu is read before mode (3.8): harmless", {"kvm_vcpu_kick": wrong.kick_old_cpu}),
        "V-M20": Variant("a flush wakes sleepers: harmless",
                         {"kvm_make_vcpu_request": remote_flush.make_vcpu_request_and_wake}),
        "V-M21": Variant("HLT does not look for events: harmless", {"kvm_emulate_halt": wrong.always_halts}),
        "V-I2": Variant("IRQs are on for a moment between the last check and VM entry",
                        entry("irq_off, mode, mb, sync, check, irq_on, irq_off"),
                        {**sometimes(*ENTERS, "resched", "timer"), "signal": {"sc": Always, **WEAK}}),
        "V-I3": Variant("a kick stores EXITING_GUEST_MODE without cmpxchg()", {"kvm_vcpu_kick": wrong.kick_by_store},
                        sometimes(*ENTRIES)),
        "V-I7": Variant("a sender takes its request back if the vCPU is in the host",
                        {"publish": wrong.publish_and_take_back}, sometimes(*ENTRIES)),
        "V-I8": Variant("guest mode within an SRCU read section", entry("irq_off, mode, mb, sync, check"), {"srcu": Always}),
        "V-I8_cancel": Variant("a cancelled entry does not go back into the read section",
                               {"cancel_entry": wrong.cancel_without_srcu}, sometimes("srcu")),
        "V-I8_sleep": Variant("sleep within an SRCU read section", {"vcpu_block": wrong.sleep_in_read_section},
                              sometimes("srcu_halt")),
        "V-L1": Variant("who flushes queues a call and sends no IPI", {"smp_call_function_many": wrong.call_without_ipi},
                        {"flush": Always, **sometimes("flush_halted", "walker")}),
        "V-W1": Variant("a walker without a full barrier after mode",
                        {"walk_shadow_page_lockless_begin": wrong.walk_begin_without_mb},
                        sometimes("walker", word=WEAK)),
        "V-W2": Variant("a walker with IRQs on", {"walk_shadow_page_lockless_begin": wrong.walk_begin_irqs_on},
                        sometimes("walker")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """One vCPU on a physical CPU of its own, and who wants something of it."""
        bodies = {"sleep": vcpu_halt, "srcu_halt": vcpu_halt, "walker": kvm_mmu_walk}
        for i in range(vm.size):
            pcpus = [Pcpu(vm, f"pcpu{i}")]
            if setup == "migrate":
                pcpus.append(Pcpu(vm, f"pcpu{i}b"))
            if setup in ("flush", "flush_halted"):
                vcpu = VcpuLoop(vm, i, pcpus, vcpu_run_with_tlb, tlb=True, running=setup == "flush")
                if setup == "flush":
                    vcpu.mode.init, pcpus[0].cpu.init = IN_GUEST_MODE, IRQS_OFF | IN_GUEST
            elif setup in ("posted", "posted_halt"):
                vcpu = VcpuLoop(vm, i, pcpus, vcpu_run_posted, irr=0, halts=setup == "posted_halt", halted=False)
                vcpu.pi_desc = PiDesc(vm, i)
            elif setup in bodies:
                VcpuLoop(vm, i, pcpus, bodies[setup])
            else:
                VcpuLoop(vm, i, pcpus, vcpu_run, exits=setup == "migrate")
        vcpus = loops(vm)
        srcu = Srcu(vm, "srcu", [vcpu.name for vcpu in vcpus]) if setup in ("srcu", "srcu_halt") else None
        for vcpu in vcpus:
            vcpu.srcu, vcpu.timer = srcu, setup == "timer"
            if setup in ("signal", "resched"):
                vcpu.thread_flags = vcpu.cell("thread_flags", 0)
        if setup in ("flush", "flush_halted", "walker"):
            Mmu(vm).vcpus = vcpus
        for n, (name, body) in enumerate(ASKING[setup].items()):
            # Who tells one vCPU at a time would find all but the first ones at rest: so each vCPU has one who tells it.
            told = [[vcpu] for vcpu in vcpus] if name in ONE_EACH else [vcpus]
            for i, those in enumerate(told):
                thread: Any = Thread(vm, f"{name}{i or ''}", to_the_end(body), csd=CALL_QUEUED << n, done=False)
                thread.told = those

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        found: list[Monitor] = [PageUse([mmu_of(vm).page])] if "mmu" in vm.by_name else []
        for vcpu in loops(vm) if vm.setup not in ("sleep", "srcu_halt") else []:
            found.append(IrqsOff(vcpu, until_entry=vm.setup == "signal"))
            found.append(Writers("V-I3", vcpu, vcpu.mode))
            found.append(Writers("V-I7", vcpu, vcpu.pi_desc.pir if vcpu.pi_desc else vcpu.requests))
        return found

    def stuck(self, vm: Vm) -> list[Violation]:
        """Liveness."""
        found = [violation for vcpu in loops(vm) if vm.in_question(vcpu) for violation in self.left_undone(vcpu)]
        asking: list[Any] = [thread for thread in vm.actors if isinstance(thread, Thread) and vm.in_question(thread)]
        return found + [Violation("V-L1", f"{me.name} waits for ever") for me in asking if not me.done]

    def left_undone(self, vcpu: Any) -> Iterator[Violation]:
        """What one vCPU was told and never looks at."""
        name, last = vcpu.name, {"entry": 1, "migrate": 1, "srcu": 1, "rearm": 2}.get(vcpu.vm.setup, 0)
        asleep, in_guest = vcpu.task_state.value == TASK_INTERRUPTIBLE, vcpu.here().cpu.value & IN_GUEST
        if vcpu.srcu_depth and (asleep or in_guest):
            what = "within an SRCU read section" if vcpu.srcu_depth > 0 else "after it has left a read section twice"
            yield Violation("V-I8", f"{name} {'sleeps' if asleep else 'runs its guest'} {what}")
        if asleep:
            if vcpu.async_pf_done.value or (vcpu.pi_desc and vcpu.pi_desc.pir.value):
                yield Violation("V-I5", f"{name} sleeps, and what it waits for is there")
        elif in_guest:
            if vcpu.requests.value:
                yield Violation("V-I1", f"{name} runs its guest with a request pending, and nobody kicks it")
            elif vcpu.thread_flags is not None and vcpu.thread_flags.value:
                yield Violation("V-I1", f"{name} runs its guest with a signal or need_resched pending, and nobody kicks it")
            elif vcpu.pi_desc and vcpu.pi_desc.pir.value:
                yield Violation("V-I1", f"{name} runs its guest with an interrupt in PIR, and nobody notifies it")
            elif getattr(vcpu, "tlb", False) and mmu_of(vcpu.vm).page.value == FREED:
                yield Violation("V-I4", f"{name} runs its guest with a freed page in the TLB")
            elif vcpu.seen != last:
                yield Violation("V-I6", f"{name} acted on work {vcpu.seen}, and {last} was published before its request")

    def outcome(self, vm: Vm) -> str:
        """Where the vCPUs ended."""
        return "; ".join(sorted({where(vcpu) for vcpu in loops(vm) if vm.in_question(vcpu)}))


def loops(vm: Vm) -> list[VcpuLoop]:
    """The vCPUs."""
    return [actor for actor in vm.actors if isinstance(actor, VcpuLoop)]


def where(vcpu: VcpuLoop) -> str:
    """Where a vCPU is when nothing moves."""
    if vcpu.task_state.value == TASK_INTERRUPTIBLE:
        return "asleep"
    if vcpu.here().cpu.value & IN_GUEST:
        return f"in the guest, requests {vcpu.requests.value:#x}"
    return "done"


async def publish_one(me: Any) -> None:
    """One request to each."""
    for vcpu in me.told:
        await me.vm.calls.publish(me, vcpu, 1)


async def publish_two(me: Any) -> None:
    """Two requests to each."""
    for vcpu in me.told:
        await me.vm.calls.publish(me, vcpu, 1)
        await me.vm.calls.publish(me, vcpu, 2)


async def wake_all(me: Any) -> None:
    """The page of each is there."""
    for vcpu in me.told:
        await me.vm.calls.async_pf_execute(me, vcpu)


async def post_one(me: Any) -> None:
    """One interrupt to each."""
    for vcpu in me.told:
        await me.vm.calls.vmx_deliver_posted_interrupt(me, vcpu, 0)


async def post_two(me: Any) -> None:
    """Two interrupts to each."""
    for vcpu in me.told:
        await me.vm.calls.vmx_deliver_posted_interrupt(me, vcpu, 0)
        await me.vm.calls.vmx_deliver_posted_interrupt(me, vcpu, 1)


async def signal_all(me: Any) -> None:
    """A signal to the thread of each."""
    for vcpu in me.told:
        await signal_wake_up(vcpu)


async def preempt_all(me: Any) -> None:
    """Another task is to run on the CPU of each."""
    for vcpu in me.told:
        await resched_curr(vcpu)


async def fire(me: Any) -> None:
    """A timer on the CPU of each."""
    for vcpu in me.told:
        await vcpu.pcpu.host_timer()


async def synchronize(me: Any) -> None:
    """Wait until no vCPU reads what it may have read before.  [kvm_main.c kvm_swap_active_memslots, 6.16]"""
    await synchronize_srcu_expedited(me, me.vm.by_name["srcu"])


async def synchronize_and_wake(me: Any) -> None:
    """What the vCPUs sleep for comes after a grace period."""
    await synchronize(me)
    await wake_all(me)


def to_the_end(body: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The body of a thread that says when it is done."""

    async def run(me: Any) -> None:
        await body(me)
        me.done = True

    return run


#: threads of which each vCPU has its own
ONE_EACH = ("kicker", "waker", "sender", "userspace", "scheduler", "timer")
#: by set-up: who wants something of the vCPUs
ASKING: dict[str, dict[str, Callable[[Any], Any]]] = {
    "entry": {"kicker": publish_one},
    "rearm": {"kicker": publish_two},
    "migrate": {"kicker": publish_one},
    "sleep": {"waker": wake_all},
    "flush": {"flusher": flush, "zapper": zap_and_free},
    "flush_halted": {"waker": wake_all, "zapper": zap_and_free},
    "walker": {"zapper": zap_and_free},
    "posted": {"sender": post_two},
    "posted_halt": {"sender": post_one},
    "signal": {"userspace": signal_all},
    "resched": {"scheduler": preempt_all},
    "timer": {"timer": fire},
    "srcu": {"updater": synchronize, "kicker": publish_one},
    "srcu_halt": {"updater": synchronize_and_wake},
}
