"""The simulated APIC against a real one: 1,000 recorded sequences, and that every kind of difference would be noticed."""

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.actor import Actor
from actors.apic_kernels import KERNELS
from actors.ops import await_eq, choose, send_ipi
from actors.pcpu import Pcpu
from actors.sync import Lock
from actors.vm import Vm
from racevisor.alone import WouldBlock, run_alone
from racevisor.cli import main
from racevisor.conform.compare import Difference, compare, simulated
from racevisor.conform.machine import Machine
from racevisor.conform.vectors import BUILT_IN, FIELDS, Damaged, Sequence, check, read
from racevisor.errors import UsageError


@pytest.fixture(scope="module")
def sequences() -> list[Sequence]:
    return list(read())


def test_every_recorded_sequence_agrees_in_every_field_after_every_operation(sequences: list[Sequence]) -> None:
    """The point of it all; nothing is left out by feature."""
    assert len(sequences) == 1000
    assert sum(len(sequence["ops"]) for sequence in sequences) > 25_000
    assert [str(difference) for sequence in sequences if (difference := compare(sequence)) is not None] == []


def test_the_vectors_that_come_with_racevisor_are_small() -> None:
    """They are in the repository, and in the wheel."""
    assert BUILT_IN.stat().st_size < 1_000_000


# ---- that a difference is seen ------------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, list):
        return [*value[:-1], value[-1] ^ 1] if value else [77]
    return not value if isinstance(value, bool) else value ^ 1


@pytest.mark.parametrize("field", FIELDS)
def test_one_wrong_field_is_the_difference(sequences: list[Sequence], field: str) -> None:
    """Whichever it is: recorded at one operation and never looked at again, it would hide a broken APIC."""
    sequence = copy.deepcopy(sequences[0])
    entry = sequence["ops"][5]
    recorded = simulated(sequence).visible()[1][field]
    entry["d"].setdefault("1", {})[field] = other(recorded)
    difference = compare(sequence)
    assert difference is not None
    assert (difference.seq, difference.operation, difference.vcpu, difference.field) == (0, 5, 1, field)
    assert difference.recorded == other(recorded)


def test_a_wrong_result_and_a_wrong_start_are_differences(sequences: list[Sequence]) -> None:
    """True is no 1: a register write was accepted, or it was taken by one APIC."""
    sequence = copy.deepcopy(sequences[0])
    index = next(k for k, entry in enumerate(sequence["ops"]) if entry["op"][0] == "wr")
    sequence["ops"][index]["r"] = 1
    difference = compare(sequence)
    assert difference is not None and (difference.operation, difference.field) == (index, "r")
    assert str(difference).startswith(f"sequence 0, operation {index}, ['wr', ")

    class Other(Machine):
        def visible(self) -> list[dict[str, Any]]:
            return [{**state, "tpr": 0x10} for state in super().visible()]

    def machine(of: Sequence) -> Machine:
        return Other(of["init"], n=of["n"], ids=of["ids"], api=of["api"])

    assert compare(sequences[0], machine) == Difference(0, -1, [], 0, "tpr", 0, 0x10)


def test_a_difference_is_said_in_words(sequences: list[Sequence]) -> None:
    """Operation, field, both values: registers as one reads them."""
    difference = Difference(7, 3, ["ack", 1], 1, "irr", [0x31], [])
    assert str(difference) == "sequence 7, operation 3, ['ack', 1]: irr of vCPU 1\n  recorded   [0x31]\n  simulated  []"


@pytest.mark.parametrize(
    ("kernel", "differs_in"),
    [
        ("5.0", {"msi r", "look r", "nmi nmi", "msi nmi", "wr nmi"}),
        ("3.10", {"msi r", "look r", "nmi nmi", "msi nmi", "wr nmi", "msi irr", "wr irr", "msi tmr", "wr tmr", "ack r"}),
    ],
)
def test_an_older_kernel_differs_in_what_it_is_said_to(sequences: list[Sequence], kernel: str, differs_in: set[str]) -> None:
    """MSIs to nobody, paravirtual kicks, the number of NMIs; 3.10 also in lowest priority, levels, TMR, waking by NMI."""
    found = [compare(sequence, lambda of: simulated(of, kernel)) for sequence in sequences[:300]]
    kinds = {f"{difference.op[0]} {difference.field}" for difference in found if difference is not None}
    assert {"msi r", "nmi nmi"} < kinds <= differs_in


def test_a_sipi_that_the_sender_of_3_8_drops_wakes_nobody(sequences: list[Sequence]) -> None:
    """Since 3.10 it is latched, looked at by the halted vCPU, and dropped there: the HLT is over."""
    state = {**sequences[0]["init"][0], "mp": 3, "if": 0}
    awake = {}
    for kernel in KERNELS:
        machine = Machine([state], n=1, ids=[0], api=0, kernel=kernel)
        machine.do(["msi", 0xFEE00000, 0x612])
        machine.do(["step", 0])
        awake[kernel] = machine.do(["look", 0])["mp"] == 0
    assert awake == {"6.18": True, "5.0": True, "3.10": True, "3.8": False}


def test_a_machine_is_refused_that_cannot_be_made(sequences: list[Sequence]) -> None:
    """It says what there is."""
    state = sequences[0]["init"][0]
    with pytest.raises(UsageError, match=r"kernels: 6\.18, 5\.0, 3\.10, 3\.8"):
        Machine([state], n=1, ids=[0], api=0, kernel="2.4")
    with pytest.raises(UsageError, match="2 vCPUs with 1 ids"):
        Machine([state], n=2, ids=[0], api=0)


def test_an_nmi_that_is_injected_again_masks_again(sequences: list[Sequence]) -> None:
    """What fresh random sequences found and the recorded ones do not hold: NMIs unmasked while one is on its way in."""
    machine = Machine([sequences[0]["init"][0]], n=1, ids=[0], api=0)
    shown = []
    for op in (["nmi", 0], ["step", 0], ["iret", 0], ["step", 0]):
        machine.do(op)
        shown.append(machine.visible()[0]["nmi"])
    assert shown == [[0, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_a_kicked_vcpu_is_awake_once_its_guest_has_stored_something(sequences: list[Sequence]) -> None:
    """Fresh random sequences found it: a kick that was used up by running must not wake a second time."""
    state = {**sequences[0]["init"][0], "base": 0xFEE00900}
    machine = Machine([state], n=1, ids=[0], api=0)
    for op in (["wr", 0, 0x300, 17189], ["setmp", 0, 3], ["look", 0], ["wr", 0, 0x300, 786511], ["nmi", 0]):
        machine.do(op)
    assert machine.do(["ack", 0]) == "nmi"


def test_an_interrupt_that_waited_for_the_apic_is_looked_for_when_it_is_switched_on(sequences: list[Sequence]) -> None:
    """Fresh random sequences found this as well; the step while the APIC is off has used up the request."""
    machine = Machine([{**sequences[0]["init"][0], "svr": 0x1FF, "if": 1}], n=1, ids=[0], api=0)
    for op in (["msi", 0xFEE00000, 0x4041], ["base", 0, 0xFEE00100], ["step", 0], ["base", 0, 0xFEE00900], ["step", 0]):
        machine.do(op)
    assert machine.visible()[0]["inj"] == 0x41


# ---- damaged files ------------------------------------------------------------------------------------------------------------


def some(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


DAMAGED: dict[str, tuple[Callable[[Sequence], Any], str]] = {
    "no vCPU": (lambda s: s.update(n=0), "'n' is 0"),
    "too many": (lambda s: s.update(n=10**9), "1 to 256"),
    "twice the same id": (lambda s: s.update(ids=[0] * s["n"]), "different ids"),
    "no init": (lambda s: s.pop("init"), "'init' is missing"),
    "a state without tpr": (lambda s: s["init"][0].pop("tpr"), "has no 'tpr'"),
    "a vector of 256": (lambda s: s["init"][0].update(irr=[256]), "'irr' is \\[256\\]"),
    "a bool for a number": (lambda s: s["init"][0].update(tpr=True), "'tpr' is true"),
    "five LVT registers": (lambda s: s["init"][0]["lvt"].pop(), "'lvt' is"),
    "an operation of its own": (lambda s: s["ops"][0].update(op=["reboot", 0]), "there is no 'reboot'; there are wr, msi"),
    "another vCPU": (lambda s: s["ops"][0].update(op=["look", 99]), "the arguments of \\['look', 99\\]"),
    "an argument too few": (lambda s: s["ops"][0].update(op=["wr", 0, 0x80]), "the arguments of"),
    "a change of nobody": (lambda s: s["ops"][0].update(d={"99": {}}), "'d' names vCPU '99'"),
    "a field of its own": (lambda s: s["ops"][0].update(d={"0": {"mp": 1}}), "'d' of vCPU 0 has mp"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_line_is_named(sequences: list[Sequence], tmp_path: Path, what: str) -> None:
    """With its file and number; what comes before it has been read."""
    damage, words = DAMAGED[what]
    sequence = copy.deepcopy(sequences[0])
    damage(sequence)
    reading = read([some(tmp_path / "v.jsonl", json.dumps(sequences[1]), json.dumps(sequence))])
    assert next(reading) == sequences[1]
    with pytest.raises(UsageError, match=rf"v\.jsonl, line 2: .*{words}"):
        next(reading)


@pytest.mark.parametrize("line", ["{", "[1]", "null", "[" * 100_000, '{"seq": 1}'])
def test_what_is_no_sequence_at_all_is_named_too(tmp_path: Path, line: str) -> None:
    """However deep it goes."""
    with pytest.raises(UsageError, match="line 1: "):
        list(read([some(tmp_path / "v.jsonl", line)]))


def test_a_file_that_ends_too_early_is_no_traceback(sequences: list[Sequence], tmp_path: Path) -> None:
    """Half a download, no file, a file that is no text."""
    whole = gzip.compress("".join(json.dumps(one) + "\n" for one in sequences[:50]).encode())
    (tmp_path / "half.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise").write_bytes(b"\xff\xfe\xfd\n")
    for name in ("half.gz", "noise", "absent"):
        with pytest.raises(UsageError, match=name):
            list(read([tmp_path / name]))


def test_plain_and_packed_files_are_read_alike(sequences: list[Sequence], tmp_path: Path) -> None:
    """Empty lines are nothing."""
    text = f"{json.dumps(sequences[3])}\n\n{json.dumps(sequences[4])}\n"
    (tmp_path / "packed").write_bytes(gzip.compress(text.encode()))
    assert list(read([some(tmp_path / "plain", text), tmp_path / "packed"])) == [*sequences[3:5], *sequences[3:5]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All paths into a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


SMALL = next(sequence for sequence in read() if sequence["n"] == 2 and len(sequence["ops"]) < 12)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just([]), st.just({}))


@settings(max_examples=300)
@given(st.sampled_from([path for path in places(SMALL) if path]), VALUES)
def test_whatever_is_changed_in_a_sequence_it_is_refused_or_compared(path: tuple[Any, ...], value: Any) -> None:
    """One value of a valid line is replaced by any other: never an exception of ours."""
    sequence = copy.deepcopy(SMALL)
    *above, last = path
    inner: Any = sequence
    for key in above:
        inner = inner[key]
    inner[last] = value
    try:
        check(sequence)
    except Damaged:
        return
    compare(sequence)


# ---- the command --------------------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["conform", *arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_agreement_is_printed_by_feature(capsys: pytest.CaptureFixture[str]) -> None:
    """How many sequences have it, how many agree."""
    status, out, _ = command(capsys, "--feature", "remrd")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:1].isalpha()}
    assert status == 0
    assert rows["remrd"] == rows["all"] == ["37", "37"]
    assert "37 of 37 sequences" in out


def test_the_first_difference_is_printed_and_the_status_is_1(
    capsys: pytest.CaptureFixture[str], sequences: list[Sequence], tmp_path: Path
) -> None:
    """With operation, field and both values; also for machines."""
    wrong = copy.deepcopy(sequences[0])
    wrong["ops"][2]["r"] = 5
    file = str(some(tmp_path / "v.jsonl", json.dumps(wrong), json.dumps(sequences[1])))
    status, out, _ = command(capsys, file)
    assert status == 1
    assert "sequence 0, operation 2, ['msi', 4276097024, 254]: its result\n  recorded   5\n  simulated  1" in out
    assert "1 of 2 sequences" in out
    status, out, _ = command(capsys, file, "--json")
    told = json.loads(out)
    assert status == 1
    assert (told["sequences"], told["agree"], told["features"]["halt"]) == (2, 1, {"sequences": 2, "agree": 1})
    assert told["differences"][0]["recorded"] == 5


def test_sequences_are_chosen_by_number_and_the_first_few(capsys: pytest.CaptureFixture[str]) -> None:
    """For looking at one."""
    assert "1 of 1 sequences (22 operations)" in command(capsys, "--sequence", "14")[1]
    assert "3 of 3 sequences" in command(capsys, "--feature", "xapic", "--first", "3")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--feature", "warp"], "no sequence has the feature warp\n  features: api1"),
        (["--sequence", "13"], "there is no sequence 13"),
        (["--kernel", "2.4"], "there is no kernel '2.4'\n  kernels: 6.18"),
        (["absent.jsonl"], "cannot read absent.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """What, and what there is instead."""
    status, _, err = command(capsys, *arguments)
    assert status == 2
    assert words in err


# ---- a thread that runs alone -------------------------------------------------------------------------------------------------


def test_a_thread_that_waits_for_another_is_not_left_hanging() -> None:
    """Nobody will release the lock, or choose for it."""
    vm = Vm()
    owner = Actor(vm, "owner")
    word = owner.cell("lock", "somebody")

    async def waits() -> None:
        async with Lock(word).held_by(owner):
            pass

    async def chooses() -> int:
        choice: int = await choose(2)
        return choice

    with pytest.raises(WouldBlock, match=r"await_eq\(owner.lock, , owner\) with owner.lock = 'somebody'"):
        run_alone(waits())
    with pytest.raises(WouldBlock, match="nobody to choose"):
        run_alone(chooses())


def test_an_ipi_arrives_in_the_step_that_sends_it() -> None:
    """There is no other time at which it could."""
    vm = Vm()
    pcpu = Pcpu(vm, "pcpu0")

    async def sends() -> Any:
        await pcpu.local_irq_disable()
        await send_ipi("pcpu0")
        return await await_eq(pcpu.cpu, 1 | 4)

    assert run_alone(sends(), vm.by_name) == 5
