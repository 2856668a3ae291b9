"""A bad execution is explained by a pair of steps whose order decides, and the other order was tried."""

import pytest
from corpus import always, shrunk_of

from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, choose
from racevisor import Scenario, Setup, Thread, Variant, Violation, Vm
from racevisor.dependence import HappensBefore
from racevisor.explain import Explanation, explain
from racevisor.explore import cases
from racevisor.linear import bits
from racevisor.reenact import reenact
from racevisor.scenario import Case, Source


def explained(case: Case) -> Explanation:
    return explain(case, shrunk_of(case).witness)


def test_the_pair_that_is_named_is_a_race_and_the_other_order_ends_well(bad_cell: Case) -> None:
    """What is said to decide was replayed in both orders; where nothing decides, every execution is claimed to be bad."""
    explanation = explained(bad_cell)
    assert bool(explanation.pairs) != always(bad_cell)
    for told in explanation.pairs:
        _, good = reenact(bad_cell, list(told.reversal.good))
        assert good.status == "terminal"
        assert good.violations == []
        pair = told.pair
        assert pair.good_first is None or pair.good_second < pair.good_first
        if pair.second is None or pair.first == pair.second:
            continue
        assert pair.first < pair.second
        first, second = explanation.bad.steps[pair.first], explanation.bad.steps[pair.second]
        again = good.steps[pair.good_second]
        assert again.channel == second.channel
        assert str(again.cell).partition("=")[0] == str(second.cell).partition("=")[0]
        assert first.thread != second.thread


def test_what_is_said_to_be_ordered_is_what_the_search_takes_for_ordered(bad_cell: Case) -> None:
    """The chain around the pair is happens-before as the dependence table has it, and no guess from the picture."""
    explanation = explained(bad_cell)
    order = HappensBefore(explanation.bad.world)
    for step in explanation.bad.steps:
        order.extend(explanation.bad.world.channels[step.channel], step)
    assert [bits(past) for past in explanation.races.past] == [bits(past) for past in order.past][: len(explanation.races.past)]


@pytest.mark.parametrize(
    ("scenario", "setup", "first", "second"),
    [
        ("init_sipi", "plain", "apic_dm_init(): vcpu1.mp_state = INIT_RECEIVED", "kvm_emulate_halt(): mp_state = HALTED"),
        ("mmu_notifier", "munmap", "get_user_pages(): mm.pte == page 1", "munmap(): xchg(mm.pte, none) == page 1"),
        ("hypercall_patching", "smp", "copy_to_guest(): memory.text0 = 0f", "guest(): memory.text0 == 0f"),
        (
            "synic_message",
            "page_walk",
            "empty_slot_of(): cmpxchg(synic0.type2, TIMER, NONE) == TIMER",
            "synic_deliver_msg(): synic0.type2 = TIMER",
        ),
        (
            "memslot_deletion",
            "fault",
            "slots_lock(): waited: kvm.slots_rwsem & 0x1ff == 0x0, |= 0x100, was free",
            "vcpu_read_lock(): kvm.slots_rwsem == userspace writes",
        ),
    ],
)
def test_before_is_explained_by_the_pair_that_the_patch_is_about(scenario: str, setup: str, first: str, second: str) -> None:
    """A reviewer reads two lines of C and knows the race: the two that the commit message speaks of."""
    (case,) = cases(scenario, ["before"], [setup], ["sc"])
    pair = explained(case).pairs[0]
    assert (str(pair.first), str(pair.second)) == (first, second)


def test_a_thread_that_waits_for_ever_is_told_with_what_it_waits_for() -> None:
    """Stuck is no place in the code: it is a condition that nobody makes true any more."""
    (case,) = cases("vcpu_requests", ["before"], ["sleep"], ["sc"])
    explanation = explained(case)
    assert explanation.waits
    text = "\n".join(explanation.why())
    assert "waits for ever: it wants" in text


def test_every_line_fits_and_the_two_orders_are_both_told() -> None:
    """It goes into mails."""
    (case,) = cases("init_sipi", ["before"], ["plain"], ["tso"])
    explanation = explained(case)
    for width in (50, 72, 100):
        assert max(map(len, explanation.whole(width))) <= width
    text = " ".join(line.strip() for line in explanation.why())
    assert "In this order: vcpu1's INIT is lost" in text
    assert "The other way round it ends well: vcpu1 RUNNABLE" in text


# ---- what no scenario of ours shows alone ---------------------------------------------------------------------------------


async def gambler(me: Thread) -> None:
    if await choose(3) == 2:
        await WRITE_ONCE(me.vm.memory.lost, 1)


async def sleeper(me: Thread) -> None:
    await READ_ONCE(me.vm.memory.lost)
    await await_eq(me.vm.memory.flag, 1)
    me.awake = True


async def forgetful(me: Thread) -> None:
    await WRITE_ONCE(me.vm.memory.flag, 1)
    await WRITE_ONCE(me.vm.memory.flag, 0)


class Small(Scenario):
    """A choice that decides, and a wake-up that is taken back."""

    name = "small"
    variants = {"plain": Variant("as it is", claims={"*": "Sometimes"})}
    setups = {"choice": Setup("one thread, three answers"), "wake_up": Setup("a flag that is set for a moment")}

    def build(self, vm: Vm, setup: str) -> None:
        vm.guest_memory(flag=0, lost=0)
        if setup == "choice":
            Thread(vm, "P0", gambler)
        else:
            Thread(vm, "P0", sleeper, awake=False)
            Thread(vm, "P1", forgetful)

    def exists(self, vm: Vm) -> str | bool:
        return vm.memory.lost.value == 1 and "it is lost"

    def stuck(self, vm: Vm) -> list[Violation]:
        return [Violation("asleep", "P0 sleeps for ever")] if "P1" in vm.by_name and not vm.by_name["P0"].awake else []


def small(setup: str) -> Case:
    return Case(Small(), Source("small", ""), "plain", setup, "sc")


def test_an_answer_that_decides_is_told_with_one_that_ends_well() -> None:
    """No other thread is needed for a choice of the hardware to be the reason."""
    explanation = explained(small("choice"))
    (pair,) = explanation.pairs
    assert pair.pair.first == pair.pair.second == 0
    assert explanation.why() == [
        "Why:",
        "    the answer of P0 at step 0 decides: gambler(): choose(3) == 2",
        "  with choose(3) == 0 it ends well: end",
    ]


def test_a_step_that_never_comes_is_told_as_the_one_that_would_have_had_to_come_first() -> None:
    """Who waits takes no step: the race is between what it never did and what took the chance away."""
    explanation = explained(small("wake_up"))
    pair = explanation.pairs[0]
    assert pair.second is None
    assert str(pair.first) == "forgetful(): memory.flag = 0"
    text = " ".join(line.strip() for line in explanation.why())
    assert "P0 sleeper(): waited: memory.flag == 1, which never comes here" in text
    assert "P0 waits for ever: it wants memory.flag == 1, and there is 0" in text
    assert "that was written by P1 in step 2" in text or "that was written by P1 in step 1" in text
    assert "in the good order P1 lets it go on: forgetful(): memory.flag = 1" in text
