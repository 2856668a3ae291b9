"""The vCPU loop's duels: every order of accesses that KVM had, and every one it must not have, does what its history says."""

import pytest
from claims import cells_of, checks

from racevisor.commands.output import reenact
from racevisor.explore import Verdict, cases, explore, explore_case
from racevisor.memory import MODELS

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


@pytest.mark.parametrize("memory", MODELS)
def test_every_claim_holds(memory: str) -> None:
    """In all set-ups, and no Never is less than a proof for its memory model; pso differs from tso in few variants."""
    variants = ["before", "fix_2008", "today", "V-M1", "V-M3_wmb", "V-6_plain"] if memory == "pso" else []
    refuted = []
    for verdict in explore(cases("vcpu_requests", variants, memories=[memory]), jobs=2):
        if not verdict.confirmed or (verdict.found == "Never" and verdict.verdict != "exhausted"):
            refuted.append(f"{verdict.variant}/{verdict.setup}: {verdict.claimed}, {verdict.found} ({verdict.verdict})")
    assert refuted == []


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


def test_irqs_go_off_after_mode_in_the_old_order() -> None:
    """V-I2 is today's promise; the code of 3.8 does not make it, and loses no request by that."""
    case = one("V-M8_sync", "entry")
    assert explore_case(case).found == "Never"
    case.variant = type(case.variant)(case.variant.about, case.variant.replaces)
    assert checks(explore_case(case)) == {"V-I2"}


def test_the_states_of_todays_loop_are_what_they_were() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    setups = ("entry", "rearm", "migrate", "sleep", "flush", "flush_halted", "walker", "posted", "posted_halt")
    verdicts = {setup: explore_case(one("today", setup)) for setup in setups}
    assert {verdict.verdict for verdict in verdicts.values()} == {"exhausted"}
    assert {setup: verdict.states for setup, verdict in verdicts.items()} == {
        "entry": 99,
        "rearm": 648,
        "migrate": 309,
        "sleep": 34,
        "flush": 375,
        "flush_halted": 751,
        "walker": 53,
        "posted": 284,
        "posted_halt": 171,
    }


def test_a_lost_wake_up_replays() -> None:
    """The trace alone brings the vCPU to sleep beside what it waits for."""
    case = one("before", "sleep")
    verdict = explore_case(case)
    assert verdict.witness is not None
    _, execution = reenact(case, verdict.witness.schedule)
    assert [violation.check for violation in execution.violations] == ["V-I5"]


def test_it_scales() -> None:
    """More vCPUs are asked in turn, each on a physical CPU of its own."""
    (case,) = cases("vcpu_requests", ["today"], ["flush"], ["sc"], 2)
    verdict = explore_case(case, strategy="random", runs=50)
    assert verdict.found == "Never"
    (case,) = cases("vcpu_requests", ["V-M13"], ["flush"], ["sc"], 2)
    assert explore_case(case).found == "Sometimes"
