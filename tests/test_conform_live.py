"""A real KVM behind the conformance runs: what holds without one, and, where /dev/kvm is usable, that it is the recorded one."""

import ctypes
import gzip
import json
import os
import platform
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as List
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racevisor.commands.conform_live import conform_live, conform_record
from racevisor.conform import ioctls, live
from racevisor.conform.compare import compare, simulated
from racevisor.conform.generate import generate, operations
from racevisor.conform.ioctls import Host, NoKvm, open_kvm, this_host, why_not
from racevisor.conform.kvm import KICK, LATE, Kvm, Late, NotPlayable
from racevisor.conform.live import kind, shrink
from racevisor.conform.machine import Machine
from racevisor.conform.page import to_registers, to_state
from racevisor.conform.record import changes, real, record, write
from racevisor.conform.vectors import FIELDS, HIDDEN, Sequence, check, read
from racevisor.errors import UsageError

WHY_NOT = why_not()
needs_kvm = pytest.mark.skipif(WHY_NOT is not None, reason=f"needs a real KVM: {WHY_NOT}")
needs_the_same_kvm = pytest.mark.skipif(
    WHY_NOT is not None or not platform.release().startswith("6.18"),
    reason=f"the recorded sequences are of Linux 6.18; here is {platform.release()}: {WHY_NOT}",
)


@pytest.fixture(scope="module")
def recorded() -> list[Sequence]:
    """The 1,000 that come with racevisor."""
    return list(read())


# ---- the interface to the kernel --------------------------------------------------------------------------------------------

# As a C compiler has them from linux/kvm.h of Linux 6.18 on x86-64; the third and fourth digit are the size of the structure.
NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_NMI": 0xAE9A,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
}


def test_every_ioctl_has_the_number_that_a_c_compiler_gives_it() -> None:
    """A structure with a field too many or too few is another number, and the kernel would say ENOTTY."""
    ours = {name: value for name, value in vars(ioctls).items() if name in NUMBERS}
    assert ours == NUMBERS


def test_structures_with_a_tail_are_laid_out_as_in_c() -> None:
    """Their numbers have only the size of the head, so the tail is checked by itself."""
    assert (ctypes.sizeof(ioctls.kvm_sigset), ioctls.kvm_sigset.blocked.offset) == (12, 4)
    assert (ctypes.sizeof(ioctls.kvm_msr), ioctls.kvm_msr.index.offset, ioctls.kvm_msr.data.offset) == (24, 8, 16)
    assert (ioctls.kvm_cpuid.entries.offset, ctypes.sizeof(ioctls.kvm_cpuid_entry2)) == (8, 40)
    mmio = ioctls.kvm_run_mmio
    assert [getattr(mmio, name).offset for name in ("immediate_exit", "exit_reason", "phys_addr", "data", "len", "is_write")] == [
        1, 8, 32, 40, 48, 52,
    ]  # fmt: skip
    events = ioctls.kvm_vcpu_events
    assert [getattr(events, name).offset for name in ("nmi", "sipi_vector", "flags", "smi", "exception_payload")] == [
        12, 16, 20, 24, 56,
    ]  # fmt: skip


def test_a_missing_device_is_told_in_one_line(tmp_path: Path) -> None:
    """Most machines have none; nothing else of racevisor needs it."""
    with pytest.raises(NoKvm, match=r"^\S+/kvm is missing: [^\n]*$") as caught:
        open_kvm(tmp_path / "kvm")
    assert caught.value.exit_status == 2
    assert why_not(tmp_path / "kvm") == str(caught.value)


def test_a_file_that_is_no_kvm_is_told_in_one_line_and_left_closed(tmp_path: Path) -> None:
    """/dev/kvm of a container may be anything."""
    (tmp_path / "kvm").touch()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with pytest.raises(NoKvm, match=r"^[^\n]* is not a KVM device$"):
        open_kvm(tmp_path / "kvm")
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_compared_or_recorded_without_a_kvm(tmp_path: Path) -> None:
    """And nothing is overwritten."""
    file = tmp_path / "recorded.jsonl"
    file.write_text("mine")
    for attempt in (
        lambda: conform_live(1, 0, "6.18", device=tmp_path / "kvm"),
        lambda: conform_record(file, 1, 0, device=tmp_path / "kvm"),
        lambda: record(generate(0, 0), tmp_path / "kvm"),
    ):
        with pytest.raises(NoKvm, match="is missing"):
            attempt()
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("loaded", "module"), [(["kvm", "kvm_intel"], "kvm_intel"), (["kvm_pvm"], "kvm_pvm"), (["kvm"], "unknown module")]
)
def test_a_report_names_kernel_and_module(tmp_path: Path, loaded: List[str], module: str) -> None:
    """Agreement is with one KVM, not with all of them."""
    for name in loaded:
        (tmp_path / name).mkdir()
    assert this_host(tmp_path) == Host(platform.release(), module)
    assert str(this_host(tmp_path)) == f"Linux {platform.release()}, {module}"


def test_a_page_shows_the_start_state_that_was_put_into_it() -> None:
    """to_state() is the inverse of to_registers(), for every start state that was recorded."""
    for sequence in islice(read(), 50):
        for state in sequence["init"]:
            page = bytearray(1024)
            for offset, value in [*to_registers(state), (0x20, state["id"])]:
                page[offset : offset + 4] = value.to_bytes(4, "little")
            shown = to_state(bytes(page), ioctls.kvm_vcpu_events(), state["base"])
            assert shown == {name: value for name, value in state.items() if name in FIELDS} | {"inj": -1}


# ---- random sequences -------------------------------------------------------------------------------------------------------


def finished(draft: Sequence) -> Sequence:
    """A draft with results, of which no machine has heard."""
    return {**draft, "ops": [{**entry, "r": None, "d": {}} for entry in draft["ops"]]}


@given(st.integers(), st.integers(0, 1 << 40), st.booleans())
@settings(max_examples=100)
def test_every_random_sequence_is_one_of_the_format(seed: int, number: int, swarm: bool) -> None:
    """With 5 to 40 operations as the recorded ones, and a start state of every field."""
    draft = generate(seed, number, swarm=swarm)
    check(finished(draft))
    assert 5 <= len(draft["ops"]) <= 40
    assert all(state.keys() == {*FIELDS, *HIDDEN} for state in draft["init"])


PRINT = """
import json
from racevisor.conform.generate import generate
print(json.dumps([generate(7, i, swarm=i % 2 > 0) for i in range(30)]))
"""


def test_a_seed_is_the_same_sequences_in_every_process() -> None:
    """A finding is told by seed and number; sets and hashes must not decide anything."""
    here = json.dumps([generate(7, i, swarm=i % 2 > 0) for i in range(30)])
    for hash_seed in ("0", "1"):
        there = subprocess.run(
            [sys.executable, "-c", PRINT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert there.stdout.strip() == here
    assert json.dumps(generate(8, 0)) != json.dumps(generate(7, 0))


def test_random_sequences_have_the_features_and_the_mix_of_the_recorded_ones(recorded: list[Sequence]) -> None:
    """What is not generated is never compared."""
    drafts = [generate(1, number) for number in range(1000)]
    for what in (features, names, modes):
        then, now = Counter(what(recorded)), Counter(what(drafts))
        assert now.keys() == then.keys()
        assert [name for name in then if not 0.5 < now[name] / then[name] < 2] == []


def features(sequences: List[Sequence]) -> list[str]:
    return [feature for sequence in sequences for feature in sequence["feat"]]


def names(sequences: List[Sequence]) -> list[str]:
    return [op[0] for sequence in sequences for op in operations(sequence)]


def modes(sequences: List[Sequence]) -> list[Any]:
    return [value for sequence in sequences for value in (sequence["mode"], sequence["n"])]


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_what_is_written_is_what_is_read_and_the_same_bytes_twice(tmp_path: Path, name: str) -> None:
    """A recording in a repository changes only if what was recorded does."""
    sequences = list(islice(read(), 20))
    assert write(sequences, tmp_path / name) == 20
    assert list(read([tmp_path / name])) == sequences
    (tmp_path / "later").mkdir()
    write(sequences, tmp_path / "later" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "later" / name).read_bytes()
    if name.endswith(".gz"):
        assert (tmp_path / name).read_bytes()[3:8] == bytes(5)  # no name, and no time of writing


def test_an_interrupted_recording_is_a_file_of_what_it_had(tmp_path: Path) -> None:
    """Nothing already found is lost."""

    def until_stopped() -> Any:
        yield from islice(read(), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(until_stopped(), tmp_path / "cut.jsonl.gz")
    assert len(list(read([tmp_path / "cut.jsonl.gz"]))) == 3
    with pytest.raises(UsageError, match="cannot be written"):
        write([], tmp_path / "no" / "such.jsonl")


# ---- live, with a machine in the place of KVM ----------------------------------------------------------------------------------


class Eager(Machine):
    """A model with two bugs: half of the task priority is forgotten, and devices hear that nobody took their interrupts."""

    def do(self, op: List[Any]) -> Any:
        if op[0] == "wr" and op[2] == 0x80:
            op = [*op[:3], op[3] & 0xF0]
        result = super().do(op)
        return 0 if op[0] == "msi" else result


def eager(sequence: Sequence) -> Eager:
    return Eager(sequence["init"], mode=sequence["mode"], n=sequence["n"], ids=sequence["ids"], api=sequence["api"])


def record_simulated(sequence: Sequence, device: Path) -> Sequence:
    """What record() does, of the model: KVM in these tests is the model without the bug."""
    machine = simulated(sequence)
    before, entries = machine.visible(), []
    for op in operations(sequence):
        result, after = machine.do(op), machine.visible()
        entries.append({"op": op, "r": result, "d": changes(before, after)})
        before = after
    return {**sequence, "ops": entries}


@pytest.fixture
def kvm_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "record", record_simulated)
    monkeypatch.setattr(live, "why_not", lambda device: None)


@pytest.mark.usefixtures("kvm_is_the_model")
def test_a_difference_is_shrunk_to_the_operations_that_it_takes_and_counted_by_feature(tmp_path: Path) -> None:
    """One store is enough to see this bug; the rest of the sequence goes."""
    report = live.live(40, 3, eager)
    assert report.compared == 40 and not report.agree
    shrunk = {finding.kind: finding for finding in report.findings if finding.shrunk is not None}
    assert shrunk.keys() == {("wr", "tpr"), ("msi", "r")}
    for found in shrunk.values():
        assert found.smallest is not None and kind(found.smallest) == found.kind
    sequence = shrunk["wr", "tpr"].shrunk
    assert sequence is not None and len(sequence["ops"]) == 1 and sequence["ops"][0]["op"][2] == 0x80
    # It is a recording like any other: the right model agrees with it, and the wrong one does not.
    write([sequence], tmp_path / "found.jsonl")
    (again,) = read([tmp_path / "found.jsonl"])
    assert compare(again) is None and compare(again, eager) is not None
    assert report.features["x2apic"].differ == sum(generate(3, finding.number)["mode"] == "x2apic" for finding in report.findings)
    text = list(report.sentences())
    assert json.dumps(sequence, separators=(",", ":")) in text
    assert f"  x2apic: {report.features['x2apic'].differ} of {report.features['x2apic'].compared} differ" in text
    assert {found["difference"]["field"] for found in json.loads(json.dumps(report.to_json()))["findings"]} == {"tpr", "r"}


@pytest.mark.usefixtures("kvm_is_the_model")
def test_of_what_is_left_no_operation_can_be_dropped() -> None:
    """Otherwise one would look for a reason where there is none."""
    recorded = next(s for s in (record_simulated(generate(3, i), Path()) for i in range(100)) if compare(s, eager) is not None)
    difference = compare(recorded, eager)
    assert difference is not None
    smallest, last = shrink(recorded, difference, eager)
    assert kind(last) == kind(difference)
    for at in range(len(smallest["ops"])):
        fewer = {**smallest, "ops": smallest["ops"][:at] + smallest["ops"][at + 1 :]}
        now = compare(record_simulated(fewer, Path()), eager)
        assert now is None or kind(now) != kind(difference)


@pytest.mark.usefixtures("kvm_is_the_model")
def test_a_budget_ends_a_live_run_and_is_told() -> None:
    """No time: nothing was compared, so nothing agrees."""
    report = live.live(10, 0, budget=0.0)
    assert report.compared == 0 and not report.agree
    assert "the time was up after 0 of 10" in list(report.sentences())


@pytest.mark.usefixtures("kvm_is_the_model")
def test_the_exit_status_says_whether_they_agree_and_what_was_found_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model of another kernel differs from this one, and the file says where: 0 is agreement, 1 is none."""
    file = tmp_path / "found.jsonl"
    assert conform_live(20, 3, "6.18", save=file) == 0 and not file.exists()
    assert "20 of 20 random sequences" in capsys.readouterr().out
    assert conform_live(20, 3, "3.10", save=file) == 1
    assert f"racevisor conform {file}" in capsys.readouterr().out.replace("\n", " ")
    found = list(read([file]))
    assert found and all(compare(sequence) is None for sequence in found)
    assert conform_live(2, 3, "3.10", budget=0.0, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["compared"] == 0
    with pytest.raises(UsageError, match="there is no kernel"):
        conform_live(1, 0, "2.4")


# ---- with a real KVM ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_of_every_kind(recorded: list[Sequence]) -> list[Sequence]:
    """The first recorded sequence of every mode and feature."""
    chosen: dict[str, Sequence] = {}
    for sequence in recorded:
        for name in (sequence["mode"], *sequence["feat"]):
            chosen.setdefault(name, sequence)
    return list({sequence["seq"]: sequence for sequence in chosen.values()}.values())


@needs_the_same_kvm
def test_recorded_operations_recorded_again_are_the_same(some_of_every_kind: list[Sequence]) -> None:
    """Start state, results, and changes: then what this module records is what was recorded."""
    for sequence in some_of_every_kind:
        again = record(sequence)
        assert again.pop("host") == str(this_host())
        assert again == sequence


def machine_of(machine: Kvm) -> Callable[[Sequence], Kvm]:
    return lambda _: machine


@needs_the_same_kvm
def test_a_real_kvm_is_a_machine_that_can_be_compared(some_of_every_kind: list[Sequence]) -> None:
    """The other way round: the comparison that judges the model finds nothing wrong with the real thing."""
    for sequence in some_of_every_kind[:8]:
        with real(sequence) as machine:
            assert compare(sequence, machine_of(machine)) is None


@needs_kvm
def test_a_live_run_compares_and_names_this_host() -> None:
    """Whether they agree is for the user to see; that they were compared is ours."""
    report = live.live(5, 1)
    assert report.compared == 5 and report.operations > 25 and report.host == this_host()


@needs_kvm
def test_a_recording_of_this_machine_can_be_read_and_recorded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same operations on the same KVM give the same file, byte by byte."""
    first, second = tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.gz"
    assert conform_record(first, 5, 1) == 0 and conform_record(second, 0, 0, again=(first,)) == 0
    assert "5 sequences recorded on Linux" in capsys.readouterr().out
    assert gzip.decompress(first.read_bytes()) == gzip.decompress(second.read_bytes())
    with pytest.raises(UsageError, match="would be overwritten"):
        conform_record(first, 0, 0, again=(first,))
    assert len(list(read([first]))) == 5


def open_files() -> list[str]:
    """What this process has open, but for the listing itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sorted(name for name in found if "kvm" in name)


def alone(**other: Any) -> dict[str, Any]:
    """One running vCPU in xAPIC mode; `other`: fields of the start state."""
    draft = next(d for d in (generate(0, i) for i in range(100)) if d["mode"] == "xapic" and d["n"] == 1)
    return {**draft, "init": [{**draft["init"][0], **other}]}


@needs_kvm
def test_no_descriptor_no_signal_and_no_thread_is_left_behind() -> None:
    """Thousands of machines are made in one process; a leaked vCPU keeps its whole VM alive."""
    before, mask = open_files(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with real(generate(0, 3)) as machine:
        assert len(open_files()) > len(before)
        machine.do(["step", 0])
    assert open_files() == before
    with pytest.raises(UsageError, match="start state"):
        real(alone(mp=77))
    with pytest.raises(UsageError, match="1 to 8 vCPUs"):
        Kvm([], mode="x2apic", n=9, ids=list(range(9)), api=0)
    with pytest.raises(UsageError, match="no such operation"), real(generate(0, 3)) as machine:
        machine.do(["fly", 0])
    machine.close()  # twice is once
    assert open_files() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask and not {KICK, LATE} & set(signal.sigpending())


@needs_kvm
def test_a_machine_inside_another_leaves_it_its_signal() -> None:
    """Both step by the same pending signal."""
    with real(alone(mp=0)) as outer:
        with real(alone(mp=0)) as inner:
            inner.do(["step", 0])
        outer.do(["nmi", 0])
        assert outer.do(["ack", 0]) == "nmi"


@needs_kvm
def test_a_machine_whose_time_is_up_says_so() -> None:
    """A KVM_RUN that blocks for ever would be a test run that hangs."""
    with real(alone(), seconds=0.0) as machine:
        assert machine._timer is not None
        machine._timer.join()
        with pytest.raises(Late, match="not done in time"):
            machine.do(["look", 0])


@needs_kvm
def test_an_xapic_store_wants_a_vcpu_that_is_known_to_run() -> None:
    """A halted vCPU executes nothing, and whether it is halted only a look tells."""
    with real(alone(mp=0)) as machine:
        with pytest.raises(NotPlayable, match="look"):
            machine.do(["wr", 0, 0x80, 0x35])
        machine.do(["look", 0])
        assert machine.do(["wr", 0, 0x80, 0x35]) is True
        assert machine.visible()[0]["tpr"] == 0x35
        machine.do(["nmi", 0])
        assert not machine.playable(["wr", 0, 0x80, 0])


@needs_kvm
def test_a_store_changes_the_register_and_nothing_else() -> None:
    """Also right after INIT, when the store has first to be made possible."""
    with real(alone(mp=0)) as machine:
        machine.do(["msi", 0xFEE00000, 0x500])
        look = machine.do(["look", 0])
        assert look == {"mp": 0, "cs": 0xF000, "ip": 0xFFF0, "if": 0}
        for offset, value, field in ((0x80, 0x35, "tpr"), (0xD0, 0x04000000, "ldr")):
            before = machine.visible()[0]
            machine.do(["wr", 0, offset, value])
            after = machine.visible()[0]
            assert after[field] == value
            assert {name for name in before if before[name] != after[name]} - {"ppr"} == {field}
        assert machine.do(["look", 0]) == look


@needs_kvm
def test_the_first_store_of_a_vcpu_keeps_its_task_priority() -> None:
    """The store is made possible by KVM_SET_SREGS, and that loses the low half of TPR."""
    with real(alone(mp=1, cs=0xF000, ip=0xFFF0, tpr=0x35, **{"if": 0})) as machine:
        machine.do(["setmp", 0, 0])
        machine.do(["look", 0])
        machine.do(["wr", 0, 0xD0, 0x04000000])
        assert (machine.visible()[0]["tpr"], machine.visible()[0]["ldr"]) == (0x35, 0x04000000)
