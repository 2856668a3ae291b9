"""Synthetic timers: a host timer that expires and owes its vCPU a message.  [arch/x86/kvm/hyperv.c, struct kvm_vcpu_hv_stimer]

Two things are called pending and are not the same: `msg_pending` here is the host's own "this timer's message is not delivered
yet"; the pending bit in a message slot tells the guest that it should write EOM once it has emptied the slot.

There is no clock.  A timer that is enqueued fires at any later step; a periodic one does so `ticks` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from actors.actor import Actor
from actors.ops import READ_ONCE, WRITE_ONCE, Op, await_masked, clear_bit, set_bit, test_and_clear_bit, test_and_set_bit
from actors.requests import kvm_make_request, kvm_vcpu_kick

#: KVM_ARCH_REQ(22) of 4.19 and later; the other request numbers of this machine are 3.8's, which has no synthetic timers
KVM_REQ_HV_STIMER = 30

EAGAIN = 11
#: Refused attempts are counted up to here: a count without end would make a state of every round of a livelock.
MOST_COUNTED = 4

#: States of the host timer; both bits: restarted while its callback runs.  [include/linux/hrtimer.h; base->running]
HRTIMER_STATE_ENQUEUED, HRTIMER_CALLBACK_RUNS = 1, 2


class HrTimer(Actor):
    """One synthetic timer and the host timer behind it; its thread is the timer interrupt, on whatever physical CPU.

    `sint`: the message slot it is bound to.  `letter`: its messages are called letter + expiry, as in "B1".  `past`: a one-shot
    timer whose time is over when it is started.  `state` and `exp_time` begin as for a timer that was started, unless `started`
    is false; with `owes` it has fired, and its message found the slot busy.
    """

    value_names: ClassVar[Mapping[str, Mapping[Any, str]]] = {
        "state": {0: "INACTIVE", HRTIMER_STATE_ENQUEUED: "ENQUEUED", HRTIMER_CALLBACK_RUNS: "CALLBACK", 3: "RESTARTED"}
    }

    def __init__(
        self,
        vm: Any,
        name: str,
        vcpu: Any,
        sint: int,
        letter: str,
        *,
        ticks: int = 1,
        periodic: bool = False,
        past: bool = False,
        enable: bool = True,
        auto_enable: bool = False,
        started: bool = True,
        owes: bool = False,
    ) -> None:
        super().__init__(vm, name)
        self.vcpu, self.sint, self.letter, self.ticks = vcpu, sint, letter, ticks
        self.periodic, self.past, self.auto_enable = periodic, past, auto_enable
        self.index = len(vcpu.stimers)
        vcpu.stimers.append(self)
        self.enable = self.cell("enable", enable)
        self.count = self.cell("count", 1 if started or enable else 0)
        self.exp_time = self.cell("exp_time", 1 if started else 0)
        self.msg_pending = self.cell("msg_pending", owes)
        self.state_word = self.cell("state", HRTIMER_STATE_ENQUEUED if started and not owes else 0)
        self.private(refused=0)  # how often it delivered by itself and found the slot busy, as far as is counted

    async def run(self) -> None:
        """Each time it is enqueued: fire.  [kernel/time/hrtimer.c __run_hrtimer]"""
        while True:
            self.checkpoint("hrtimer")
            await await_masked(
                self.state_word, HRTIMER_STATE_ENQUEUED, HRTIMER_STATE_ENQUEUED, HRTIMER_STATE_ENQUEUED, HRTIMER_CALLBACK_RUNS
            )
            await self.vm.calls.stimer_timer_callback(self)
            await test_and_clear_bit(1, self.state_word)  # under the base's lock

    def hrtimer_start(self) -> Any:
        """Enqueue the host timer."""
        return test_and_set_bit(0, self.state_word)

    def message(self, exp_time: int) -> str:
        """The name of the message of one expiry: stands for its payload."""
        return f"{self.letter}{exp_time}"


async def stimer_timer_callback(stimer: HrTimer) -> None:
    """Timer interrupt: leave the work to the vCPU's thread.  [hyperv.c]"""
    stimer.note("kvm_hv_stimer_callback", timer=stimer.index)
    await stimer.vm.calls.stimer_mark_pending(stimer, stimer, True)


async def stimer_mark_pending(me: Actor, stimer: HrTimer, vcpu_kick: bool) -> None:
    """The bit, the request, the kick.  [hyperv.c]"""
    await set_bit(stimer.index, stimer.vcpu.stimer_pending_bitmap)
    await kvm_make_request(KVM_REQ_HV_STIMER, stimer.vcpu)
    if vcpu_kick:
        await kvm_vcpu_kick(me, stimer.vcpu)


async def stimer_cleanup(stimer: HrTimer) -> None:
    """Stop it, and owe nothing.  [hyperv.c; kernel/time/hrtimer.c hrtimer_cancel waits for a callback that runs]"""
    await test_and_clear_bit(0, stimer.state_word)
    await hrtimer_cancel_wait_running(stimer)
    await clear_bit(stimer.index, stimer.vcpu.stimer_pending_bitmap)
    await WRITE_ONCE(stimer.msg_pending, False)
    await WRITE_ONCE(stimer.exp_time, 0)


def hrtimer_cancel_wait_running(stimer: HrTimer) -> Op:
    """Block until no callback of the timer runs.  [kernel/time/hrtimer.c]"""
    return await_masked(stimer.state_word, HRTIMER_CALLBACK_RUNS, 0)


async def stimer_start(me: Actor, stimer: HrTimer) -> None:
    """Let the host timer run to the next expiry.  [hyperv.c]"""
    if stimer.periodic:
        exp_time = await READ_ONCE(stimer.exp_time)
        await WRITE_ONCE(stimer.exp_time, exp_time + 1)
        if exp_time < stimer.ticks:  # what is simulated ends after so many periods
            await stimer.hrtimer_start()
        return
    past = stimer.past or await READ_ONCE(stimer.exp_time)  # it fired before: its time is over, as time_now would say
    await WRITE_ONCE(stimer.exp_time, await READ_ONCE(stimer.count))
    if past:
        await stimer.vm.calls.stimer_mark_pending(me, stimer, False)
    else:
        await stimer.hrtimer_start()


async def stimer_expiration(me: Actor, stimer: HrTimer) -> None:
    """The message is owed from before the first attempt on, until an attempt succeeds.  [hyperv.c]"""
    await WRITE_ONCE(stimer.msg_pending, True)
    r = await send_and_count(me, stimer)
    if not r:
        await WRITE_ONCE(stimer.msg_pending, False)
        if not stimer.periodic:
            await WRITE_ONCE(stimer.enable, False)


async def send_and_count(me: Any, stimer: HrTimer) -> int:
    """The attempt within stimer_expiration(); how often the slot was busy is for a check to know."""
    r: int = await stimer.vm.calls.stimer_send_msg(me, stimer)
    me.note("kvm_hv_stimer_expiration", timer=stimer.index, r=r)
    if r == -EAGAIN:
        me.refused = min(me.refused + 1, MOST_COUNTED)
    return r


async def stimer_send_msg(me: Actor, stimer: HrTimer) -> int:
    """Fill in the times, and deliver.  [hyperv.c]"""
    exp_time = await READ_ONCE(stimer.exp_time)
    r: int = await stimer.vm.calls.synic_deliver_msg(me, stimer.vcpu.synic, stimer.sint, stimer.message(exp_time))
    return r


async def kvm_hv_process_stimers(vcpu: Any) -> None:
    """KVM_REQ_HV_STIMER, on the vCPU's thread before it enters the guest.  [hyperv.c]"""
    for stimer in vcpu.stimers:
        if not await test_and_clear_bit(stimer.index, vcpu.stimer_pending_bitmap):
            continue
        if not await READ_ONCE(stimer.enable):
            continue
        if await READ_ONCE(stimer.exp_time):  # and it is reached: only then is the bit set
            await vcpu.vm.calls.stimer_expiration(vcpu, stimer)
        if await READ_ONCE(stimer.enable) and await READ_ONCE(stimer.count):
            if not await READ_ONCE(stimer.msg_pending):
                await stimer_start(vcpu, stimer)
        else:
            await stimer_cleanup(stimer)


async def stimer_set_config(me: Actor, stimer: HrTimer, enable: bool) -> None:
    """Write to STIMERn_CONFIG.  [hyperv.c, 4.19: marks the timer pending whether it is enabled or not]"""
    await stimer_cleanup(stimer)
    await WRITE_ONCE(stimer.enable, enable)
    await stimer.vm.calls.stimer_mark_if_enabled(me, stimer)


async def stimer_set_count(me: Actor, stimer: HrTimer, count: int, host: bool) -> None:
    """Write to STIMERn_COUNT, by the guest or (`host`) by userspace.  [hyperv.c]"""
    await stimer_cleanup(stimer)
    await WRITE_ONCE(stimer.count, count)
    if await stimer.vm.calls.stimer_count_enables(host):
        if count == 0:
            await WRITE_ONCE(stimer.enable, False)
        elif stimer.auto_enable:
            await WRITE_ONCE(stimer.enable, True)
    await stimer.vm.calls.stimer_mark_if_enabled(me, stimer)


async def stimer_mark_if_enabled(me: Actor, stimer: HrTimer) -> None:
    """The end of stimer_set_config() and _count() before 013cc6ebbf41: not only if enabled, in spite of the name.  [hyperv.c]"""
    await stimer.vm.calls.stimer_mark_pending(me, stimer, False)


async def stimer_count_enables(host: bool) -> bool:
    """A count written to an auto-enable timer enables it, before d6800af51c76 even if userspace writes it.  [hyperv.c]"""
    return True


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        stimer_timer_callback,
        stimer_mark_pending,
        stimer_expiration,
        stimer_send_msg,
        kvm_hv_process_stimers,
        stimer_mark_if_enabled,
        stimer_count_enables,
    )
}
