"""Hypercall patching: what a CPU can fetch while another one writes, and what the patch did to registers, locks and memory."""

from dataclasses import replace

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks, refuted

from actors.hypercall import NATIVE, VMCALL, VMMCALL, decode
from racevisor.explore import cases, explore_case
from racevisor.memory import MODELS

one = cells_of("hypercall_patching")

#: where a second thread races; the other set-ups have one thread, or next to nothing to interleave
RACES = ("smp", "prefixed", "emulator_fetch", "migration", "rewrite")


def test_every_claim_holds_when_stores_are_visible_at_once() -> None:
    assert refuted(cases("hypercall_patching", memories=["sc"])) == []


@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_the_claims_of_the_races_hold_with_store_buffers(memory: str) -> None:
    """No store buffer helps a torn fetch or hides one: lock, IPI and answer order the writes in every model."""
    versions = ["before", "after", "2.6.25", "today", "H-M3", "H-M4", "H-M6", "ipi_first", "not_dirty"]
    assert refuted(cases("hypercall_patching", versions, RACES, [memory])) == []


def test_the_two_instructions_differ_in_one_byte_so_that_no_mix_of_them_is_a_third() -> None:
    """Why a plain vmcall can be patched under the feet of the CPUs that execute it, as is done since the zap was dropped."""
    mixes = {(a, b, c) for a in (VMCALL[0], VMMCALL[0]) for b in (VMCALL[1], VMMCALL[1]) for c in (VMCALL[2], VMMCALL[2])}
    assert mixes == set(NATIVE.values())
    assert decode(("66", *VMMCALL)) == ("vmmcall", 4)
    for variant in ("today", "H-M4", "H-M5"):
        assert explore_case(one(variant, "smp")).finding == "Never"


def test_a_page_of_int3_that_is_registered_shows_exactly_six_mixes() -> None:
    """H-2: three bytes change one after the other, and a fetch reads them one after the other, at whatever pace."""
    case = one("before", "smp")
    case.variant = replace(case.variant, exempt={"H-I1": "all that can be fetched is wanted", "H-L1": "a mix is #UD"})
    fetched: set[str] = set()

    def outcome(vm: object) -> str:
        vcpu1 = vm.by_name["vcpu1"]  # type: ignore[attr-defined]
        fetched.update(vcpu1.fetched)
        return " / ".join(vcpu1.fetched)

    case.scenario.outcome = outcome  # type: ignore[method-assign,assignment]
    verdict = explore_case(case, to_the_end=True)
    assert (verdict.verdict, set(verdict.outcomes)) == ("exhausted", fetched)
    assert fetched - {"cc cc cc", "0f 01 c1"} == {"0f cc cc", "0f 01 cc", "0f cc c1", "cc 01 cc", "cc 01 c1", "cc cc c1"}


def test_a_call_meanwhile_fetches_a_mix_before_the_patch_and_the_report_names_the_loads() -> None:
    verdict = explore_case(one("before", "smp"))
    assert verdict.witness is not None
    torn = next(v for v in verdict.witness.violations if v.check == "H-I1")
    loads = [verdict.witness.schedule[n] for n in torn.fatal]
    assert [channel for channel, _ in loads] == ["vcpu1"] * 3
    got = tuple(label.split(" = ")[1] for _, label in loads)
    assert got not in (("cc", "cc", "cc"), VMCALL)


def test_a_guest_that_moves_to_the_other_vendor_gets_an_invalid_opcode_before_the_patch_and_never_after() -> None:
    """H-1, the reason of the patch."""
    assert "H-L1" in checks(explore_case(one("before", "migration", "tso")))
    after = explore_case(one("after", "migration", "tso"))
    assert (after.found, after.verdict) == ("Never", "exhausted")


@pytest.mark.parametrize("variant", ["2.6.25", "today", "H-M3", "H-M4", "H-M5", "H-M6", "ipi_first"])
def test_a_prefixed_instruction_is_torn_by_whatever_breaks_the_exclusion(variant: str) -> None:
    """Zap, lock, the wait for the IPIs and the order of request and IPI: each is needed as soon as two bytes change."""
    assert checks(explore_case(one(variant, "prefixed"))) == {"H-I1"}


def test_the_emulator_can_fetch_a_mix_though_no_cpu_can() -> None:
    """It fetches without the lock, after the CPU has left the guest: neither zap nor flush keeps it out."""
    verdict = explore_case(one("after", "emulator_fetch"))
    assert checks(verdict) == {"H-I1"}
    assert verdict.witness is not None
    assert "emulator" in verdict.witness.violations[0].text


@pytest.mark.parametrize(
    ("variant", "setup", "check", "words"),
    [
        ("after", "first_call", "H-I2", "leaves RAX = 5 for -1000"),  # H-M8
        ("2.6.30", "first_call", "H-I2", "is skipped"),  # H-M9, as shipped
        ("H-M9", "first_call", "H-I2", "is skipped"),
        ("H-M12", "native", "H-I2", "has 0x5(0x7) for 0x5(0x100000007)"),
        ("H-M13", "native", "H-I7", "has set no exit reason"),
        ("after", "rewrite", "H-I4", "which it holds"),
        ("H-M10", "smp", "H-I4", "which it holds"),
        ("H-M11", "read_only", "livelock", "busy loop"),
        ("not_dirty", "migration", "H-I5", "the destination gets"),
        ("after", "prefix_twice", "H-L1", "#UD"),
        ("after", "read_only", "H-I3", "changes memory.text"),
        ("after", "cs_base", "H-I3", "changes memory.text"),
        ("today", "cs_base", "livelock", "busy loop"),
        ("after", "other_ud", "H-I6", "KVM emulates it"),
        ("after", "compat", "H-I2", "0x100000007"),
        ("after", "user_mode", "H-I2", "leaves RAX = -1000 for -1"),
        ("after", "leftover", "H-I2", "has -0x1"),
        ("quirk_off", "rewrite", "H-I6", "its guest takes #UD"),
    ],
)
def test_each_mistake_is_caught_by_the_check_that_is_about_it(variant: str, setup: str, check: str, words: str) -> None:
    verdict = explore_case(one(variant, setup))
    assert verdict.witness is not None
    assert any(v.check == check and words in v.text for v in verdict.witness.violations), verdict.witness.violations


def test_the_number_of_states_of_the_reference_is_what_it_was() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    states = {setup: explore_case(one("after", setup)).states for setup in ("smp", "prefixed", "migration")}
    assert states == {"smp": 1504, "prefixed": 1838, "migration": 1075}


def test_source_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant in ("after", "not_dirty"):
        assert_traces_and_states_agree(one(variant, "migration"), "source")


@pytest.mark.parametrize("setup", [*RACES, "straddle"])
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "after", "today"):
        for memory in MODELS:
            audit(one(variant, setup, memory))
