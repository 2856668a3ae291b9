"""The vCPU loop's duels: every order of accesses that KVM had, and every one it must not have, does what its history says."""

from collections.abc import Callable

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks

from racevisor.commands.output import reenact
from racevisor.explore import Verdict, cases, explore_case
from racevisor.memory import MODELS
from racevisor.strategies.random_walk import RandomWalk

one = cells_of("vcpu_requests")

#: what each version or mutant breaks where it is not Never: the first bad outcome that a search meets, by set-up
CAUGHT = {
    ("before", "entry"): {"V-I1"},
    ("before", "sleep"): {"V-I5"},
    ("before", "flush"): {"V-I4"},
    ("before", "posted"): {"V-I1"},
    ("3.8", "posted"): {"V-I1"},
    ("V-M4", "entry"): {"V-I1"},
    ("V-M5", "entry"): {"V-I1"},
    ("V-M7", "entry"): {"V-I1"},
    ("V-6a", "posted"): {"V-I1"},
    ("V-6b", "posted"): {"V-I1"},
    ("V-6_on_first", "posted_halt"): {"V-I5"},
    ("V-6_pir_first", "posted"): {"V-I1"},
    ("V-6_blind", "posted_halt"): {"V-I5"},
    ("V-7", "entry"): {"V-I6"},
    ("V-M9", "sleep"): {"V-I5"},
    ("V-M10", "sleep"): {"V-I5"},
    ("V-M11", "sleep"): {"V-I5"},
    ("V-M13", "flush"): {"V-I4"},
    ("V-M16_early", "rearm"): {"V-I6"},
    ("before", "signal"): {"V-I1"},
    ("before", "timer"): {"V-I1"},
    ("V-4_work", "signal"): {"V-I1"},
    ("V-4_work", "resched"): {"V-I1"},
    ("V-M7", "timer"): {"V-I1"},
    ("V-I2", "signal"): {"V-I2"},
    ("V-I2", "entry"): {"V-I1"},
    ("V-I3", "entry"): {"V-I3"},
    ("V-I7", "entry"): {"V-I7"},
    ("V-I8_sleep", "srcu_halt"): {"V-I8", "V-L1"},
    ("V-L1", "flush"): {"V-L1", "V-I1"},
    ("V-M18", "flush"): {"V-I4"},
    ("V-M18_reading", "walker"): {"V-I4"},
    ("V-M18_wait", "flush"): {"V-I4"},
    ("V-W2", "walker"): {"V-I4"},
}
#: missing store-load barriers, which x86 shows
STORE_LOAD = [
    ("fix_2008", "entry", "V-I1"),
    ("V-M1", "entry", "V-I1"),
    ("V-M3", "entry", "V-I1"),
    ("V-M8_no_mb", "entry", "V-I1"),
    ("V-6_plain", "posted", "V-I1"),
    ("V-M12", "sleep", "V-I5"),
    ("V-M12_state", "sleep", "V-I5"),
    ("V-W1", "walker", "V-I4"),
]


def labels(verdict: Verdict, channel: str) -> list[str]:
    assert verdict.witness is not None
    return [label for name, label in verdict.witness.schedule if name == channel]


def test_each_wrong_order_is_caught_by_the_check_that_is_about_it() -> None:
    """A lost kick is found as a lost kick, not as something that happens on the way."""
    found = {(variant, setup): checks(explore_case(one(variant, setup))) for variant, setup in CAUGHT}
    assert found == CAUGHT


@pytest.mark.parametrize(("variant", "setup", "check"), STORE_LOAD)
def test_a_missing_full_barrier_is_harmless_until_stores_are_late(variant: str, setup: str, check: str) -> None:
    """smp_wmb() instead of it, as in 2008, is as good as none."""
    assert explore_case(one(variant, setup)).found == "Never"
    assert checks(explore_case(one(variant, setup, "tso"))) == {check}


def test_x86_hides_the_write_barrier_of_a_request() -> None:
    """V-I6: the request overtakes the work only where stores to two cells are not ordered."""
    found = {memory: explore_case(one("V-M3_wmb", "entry", memory)).found for memory in MODELS}
    assert found == {"sc": "Never", "tso": "Never", "pso": "Sometimes"}


def test_a_kick_is_lost_between_the_last_check_and_the_mode() -> None:
    """V-1, step for step: the check sees nothing, the kicker sees OUTSIDE_GUEST_MODE and sends no IPI, the guest is entered."""
    verdict = explore_case(one("V-M4", "entry"))
    assert verdict.witness is not None
    order = [label.partition(" ")[0] for _, label in verdict.witness.schedule]
    check = max(n for n, label in enumerate(order) if label == "READ_ONCE(vcpu0.requests)")
    request = next(n for n, label in enumerate(order) if label.startswith("set_bits(vcpu0.requests"))
    kick = next(n for n, label in enumerate(order) if label.startswith("cmpxchg(vcpu0.mode"))
    mode = next(n for n, label in enumerate(order) if label.startswith("WRITE_ONCE(vcpu0.mode"))
    assert check < request < kick < mode
    assert not any(label.startswith("smp_send_reschedule") for label in labels(verdict, "kicker"))


def test_an_ipi_that_comes_before_irqs_are_off_is_swallowed_by_the_host() -> None:
    """V-M7: the kicker did all it has to do, and the IPI found a host with IRQs on."""
    verdict = explore_case(one("V-M7", "entry"))
    assert verdict.witness is not None
    names = [channel for channel, _ in verdict.witness.schedule]
    off = next(n for n, (_, label) in enumerate(verdict.witness.schedule) if label.startswith("or(pcpu0.cpu, 1)"))
    assert names.index("kicker=>pcpu0") < off


def test_the_second_flusher_returns_while_the_first_ones_ipi_is_on_its_way() -> None:
    """V-5: it found the bit set, and sends nothing; the lock of 84261923d3dd, and today's look at mode, make it wait."""
    verdict = explore_case(one("V-M13", "flush"))
    assert not any(label.startswith("smp_send_reschedule") for label in labels(verdict, "zapper"))
    for variant in ("V-M14", "today"):
        found = explore_case(one(variant, "flush"))
        assert (found.found, found.verdict) == ("Never", "exhausted")


def test_of_the_places_to_sync_pir_only_after_mode_and_irqs_off_is_safe() -> None:
    """Both orders of mode and IRQs off are; what the commit forbids is a sync before either of them."""
    found = {name: explore_case(one(name, "posted")).found for name in ("3.8", "V-6a", "V-6b", "V-M8_sync", "today")}
    assert found == {"3.8": "Sometimes", "V-6a": "Sometimes", "V-6b": "Sometimes", "V-M8_sync": "Never", "today": "Never"}


def test_an_interrupt_of_the_host_is_lost_between_the_last_check_and_irqs_off() -> None:
    """V-4: the check sees nothing, the handler of a timer makes its request and is done, and the guest is entered."""
    verdict = explore_case(one("before", "timer"))
    assert verdict.witness is not None
    order = [label.partition(" ")[0] for _, label in verdict.witness.schedule]
    check = max(n for n, label in enumerate(order) if label == "READ_ONCE(vcpu0.requests)")
    fires = next(n for n, (name, _) in enumerate(verdict.witness.schedule) if name == "timer")
    request = next(n for n, label in enumerate(order) if label.startswith("set_bits(vcpu0.requests"))
    off = max(n for n, label in enumerate(order) if label.startswith("or(pcpu0.cpu,"))
    assert max(check, fires) < request < off
    for variant, expected in {"V-M4": "Never", "V-M1": "Never", "V-M5": "Sometimes", "V-M7": "Sometimes"}.items():
        assert explore_case(one(variant, "timer", "tso")).found == expected, variant  # of mode and barriers nothing depends


def test_a_signal_needs_the_last_check_and_irqs_off_before_it_but_no_mode() -> None:
    """The IPI of a signal is sent whatever mode is, so an order that loses kicks loses no signal if IRQs go off first."""
    found = {variant: explore_case(one(variant, "signal")).found for variant in ("today", "V-M4", "V-4_work", "V-M7", "before")}
    assert found == {"today": "Never", "V-M4": "Never", "V-4_work": "Sometimes", "V-M7": "Sometimes", "before": "Sometimes"}


def test_who_stays_in_a_read_section_lets_the_updater_wait_for_ever() -> None:
    """V-I8: in guest mode always, in sleep if the reader was there first, and twice out of it after a cancelled entry."""
    always = explore_case(one("V-I8", "srcu"))
    assert always.found == "Always" and "V-I8" in checks(always)
    for variant, setup, text in (
        ("V-I8", "srcu", "runs its guest within an SRCU read section"),
        ("V-I8_sleep", "srcu_halt", "sleeps within an SRCU read section"),
        ("V-I8_cancel", "srcu", "runs its guest after it has left a read section twice"),
    ):
        verdict = explore_case(one(variant, setup))
        assert verdict.witness is not None
        assert any(text in violation.text for violation in verdict.witness.violations), variant


def test_the_barrier_within_srcu_read_unlock_hides_that_there_is_none_after_mode() -> None:
    """V-M1 loses requests under tso, and none where the read section is left between mode and the check."""
    assert explore_case(one("V-M1", "entry", "tso")).found == "Sometimes"
    assert explore_case(one("V-M1", "srcu", "tso")).found == "Never"


Steps = list[tuple[str, str]]


def first(steps: Steps, begin: str) -> int:
    """Where a step with such a label is; the end if there is none."""
    return next((n for n, (_, label) in enumerate(steps) if label.startswith(begin)), len(steps))


def then(steps: Steps, begin: str) -> str:
    """What the thread that takes such a step does next."""
    at = first(steps, begin)
    return next((label for name, label in steps[at + 1 :] if name == steps[at][0]), "")


#: mutants that are harmless: set-up, and what the changed code does there that today's code never does
HARMLESS: dict[str, tuple[str, Callable[[Steps], bool]]] = {
    "V-M3_bit": ("entry", lambda steps: then(steps, "set_bits(vcpu0.requests").startswith("READ_ONCE(vcpu0.wait_task")),
    "V-M8_sync": ("entry", lambda steps: first(steps, "WRITE_ONCE(vcpu0.mode, 1") < first(steps, "or(pcpu0.cpu, 1)")),
    "V-M14": ("flush", lambda steps: first(steps, "await_eq(mmu.requests_lock") < len(steps)),
    "V-M16": ("entry", lambda steps: then(steps, "clear_bits(vcpu0.requests").startswith("READ_ONCE(vcpu0.work")),
    "V-M17": ("rearm", lambda steps: then(steps, "cmpxchg(vcpu0.mode, 1, 2) = 2").startswith("READ_ONCE(vcpu0.cpu")),
    "V-M19": ("migrate", lambda steps: first(steps, "READ_ONCE(vcpu0.cpu") < first(steps, "cmpxchg(vcpu0.mode")),
    "V-M20": ("flush_halted", lambda steps: any(n == "zapper" and "xchg(vcpu0.task_state" in label for n, label in steps)),
    "V-M21": (
        "sleep",
        lambda steps: (
            first(steps, "WRITE_ONCE(vcpu0.async_pf_done, True")
            < first(steps, "WRITE_ONCE(vcpu0.wait_task, True")
            < first(steps, "READ_ONCE(vcpu0.async_pf_done")
        ),
    ),
}


@pytest.mark.parametrize("variant", HARMLESS)
def test_what_is_harmless_really_runs(variant: str) -> None:
    """A Never of code that no set-up reaches says nothing: the changed steps are met, and today's code never takes them."""
    setup, shows = HARMLESS[variant]

    def seen(name: str) -> bool:
        world = one(name, setup).world()
        walk = RandomWalk(7, 400)
        try:
            return any(shows([(s.channel, s.label) for s in world.run(walk, run).steps]) for run in range(400))
        finally:
            world.close()

    assert seen(variant)
    assert not seen("today")


def test_irqs_go_off_after_mode_in_the_old_order() -> None:
    """V-I2 is today's promise; the code of 3.8 does not make it, and loses no request by that."""
    case = one("V-M8_sync", "entry")
    assert explore_case(case).found == "Never"
    case.variant = type(case.variant)(case.variant.about, case.variant.replaces)
    assert checks(explore_case(case)) == {"V-I2"}


def test_the_states_of_todays_loop_are_what_they_were() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    verdicts = {setup: explore_case(one("today", setup)) for setup in one("today", "entry").scenario.setups}
    assert {verdict.verdict for verdict in verdicts.values()} == {"exhausted"}
    assert {setup: verdict.states for setup, verdict in verdicts.items()} == {
        "entry": 99,
        "rearm": 623,
        "migrate": 309,
        "sleep": 34,
        "flush": 240,
        "flush_halted": 751,
        "walker": 53,
        "posted": 283,
        "posted_halt": 171,
        "signal": 58,
        "resched": 58,
        "timer": 26,
        "srcu": 2010,
        "srcu_halt": 180,
    }


def test_a_lost_wake_up_replays() -> None:
    """The trace alone brings the vCPU to sleep beside what it waits for."""
    case = one("before", "sleep")
    verdict = explore_case(case)
    assert verdict.witness is not None
    _, execution = reenact(case, verdict.witness.schedule)
    assert [violation.check for violation in execution.violations] == ["V-I5"]


@pytest.mark.parametrize(
    ("variant", "setup", "memory"),
    [
        ("V-4_work", "signal", "tso"),
        ("V-I2", "signal", "sc"),
        ("before", "timer", "pso"),
        ("V-I8_sleep", "srcu_halt", "sc"),
        ("V-L1", "walker", "tso"),
    ],
)
def test_another_search_finds_the_same_and_a_run_is_a_function_of_its_schedule(variant: str, setup: str, memory: str) -> None:
    """The optional parts of a vCPU, and the check that watches IRQs until VM entry, are as exact as the rest."""
    assert_traces_and_states_agree(one(variant, setup, memory), "optimal")
    audit(one(variant, setup, memory))


def test_it_scales() -> None:
    """More vCPUs are asked in turn, each on a physical CPU of its own."""
    (case,) = cases("vcpu_requests", ["today"], ["flush"], ["sc"], 2)
    verdict = explore_case(case, strategy="random", runs=50)
    assert verdict.found == "Never"
    (case,) = cases("vcpu_requests", ["V-M13"], ["flush"], ["sc"], 2)
    assert explore_case(case).found == "Sometimes"
