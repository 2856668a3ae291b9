"""Reading logs: every sound line is used, every damaged one is named, and a log may still be growing."""

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_logs import Made, race

from racevisor.analysis import read as reading
from racevisor.analysis.read import Logs, read
from racevisor.analysis.rounds import rounds
from racevisor.errors import UsageError

#: Lines that no writer of ours has written, and a word of why.
BROKEN = {
    b'{"event": "step", "rou': "not JSON",
    b'{"event": "step", "round": 1} {"event": "step"}': "not JSON",
    b"\x00\x00\x00\x00": "not JSON",
    b'{"event": "st\xff"}': "not UTF-8",
    b"[1, 2]": "not an object, but [1, 2]",
    b"null": "not an object, but None",
    b'{"a": 1}': "no event of racevisor",
    b'{"event": null}': "no event of racevisor",
    b'{"event": "step", "round": "x"}': "its round is 'x', which is no whole number",
    b'{"event": "step", "clock": 2.5}': "its clock is 2.5, which is no whole number",
    b'{"event": "step", "clock": 99999999999999999999999}': "which is no whole number",
    b'{"event": "answer", "seconds": NaN}': "NaN is no number",
    b'{"event": "answer", "seconds": "soon"}': "its seconds is 'soon', which is no number",
    b'{"event": "round", "violations": 3}': "its violations is 3, which is no list",
    b'{"event": "round", "violations": [{"step": "x"}]}': "a field has a value of another type",
    b"[" * 3_000 + b"]" * 3_000: "not",
}


def steps_of(logs: Logs) -> list[int]:
    return logs.events["line"].to_list()


def some(directory: Path, count: int) -> list[bytes]:
    made = Made(directory)
    for number in range(count):
        made.write("host0", "step", round=number, actor="vcpu0", step=0, clock=1, op="load", cell="a.b", value="0", label="x")
    made.save()
    return (directory / "host0.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda line: line[:40].decode("latin-1"))
def test_a_damaged_line_is_named_with_its_file_and_what_is_wrong(tmp_path: Path, broken: bytes) -> None:
    """A disk that was full, a process that was killed, a foreign program: whoever reads must know what was not counted."""
    lines = some(tmp_path, 4)
    file = tmp_path / "host0.jsonl"
    file.write_bytes(b"".join([*lines[:2], broken + b"\n", *lines[2:]]))
    logs = read([tmp_path])
    assert (logs.damage, logs.lines) == (1, 5)
    (damage,) = logs.damaged
    assert str(damage).startswith(f"{file}:3: ") and BROKEN[broken] in damage.why
    assert steps_of(logs) == [1, 2, 4, 5]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(BROKEN))), max_size=40), st.integers(50, 4_000))
@settings(max_examples=40)
def test_among_any_lines_the_damaged_ones_and_no_others_are_left_out(lines: list[tuple[bool, bytes]], block: int) -> None:
    """Wherever a block of the file happens to end."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        directory = Path(name)
        sound = iter(some(directory, len(lines) + 1))
        whole = b"".join(next(sound) if is_sound else broken + b"\n" for is_sound, broken in lines) + next(sound)
        (directory / "host0.jsonl").write_bytes(whole)
        logs = read([directory])
    good = [number for number, (is_sound, _) in enumerate(lines, 1) if is_sound]
    assert steps_of(logs) == [*good, len(lines) + 1]
    assert [damage.line for damage in logs.damaged] == sorted(set(range(1, len(lines) + 1)) - set(good))


@given(st.data())
@settings(max_examples=40)
def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(data: st.DataObject) -> None:
    """A run of a week is asked how it goes; what its writer has not finished is no damage."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        lines = some(directory, 3)
        whole = b"".join(lines)
        cut = data.draw(st.integers(len(lines[0]), len(whole)))
        (directory / "host0.jsonl").write_bytes(whole[:cut])
        logs = read([directory])
    ends = [len(b"".join(lines[: n + 1])) for n in range(3)]
    there = sum(cut >= end - 1 for end in ends)  # a line that lacks only its end of line is whole
    assert (logs.damage, steps_of(logs)) == (0, list(range(1, there + 1)))
    assert bool(logs.growing) == (cut not in ends and cut + 1 not in ends)


def test_a_log_that_grew_is_read_again_with_what_came(tmp_path: Path) -> None:
    """The half line of before is whole then, and counted once."""
    lines = some(tmp_path, 3)
    file = tmp_path / "host0.jsonl"
    file.write_bytes(lines[0] + lines[1][:30])
    assert steps_of(read([tmp_path])) == [1]
    with file.open("ab") as more:
        more.write(lines[1][30:] + lines[2])
    assert steps_of(read([tmp_path])) == [1, 2, 3]


def test_the_end_of_a_finished_file_that_is_cut_off_is_damage(tmp_path: Path) -> None:
    """Nobody writes to NAME.jsonl.1 any more."""
    lines = some(tmp_path, 2)
    (tmp_path / "host0.jsonl").rename(tmp_path / "host0.jsonl.1")
    (tmp_path / "host0.jsonl.1").write_bytes(lines[0] + lines[1][:30])
    logs = read([tmp_path])
    assert [str(damage).split(": not")[0] for damage in logs.damaged] == [f"{tmp_path}/host0.jsonl.1:2"]


def test_rotated_and_compressed_files_belong_to_their_log(tmp_path: Path) -> None:
    """Oldest first; whoever keeps logs compresses them."""
    made = Made(tmp_path)
    for number in range(6):
        made.round(number)
    made.save()
    lines = (tmp_path / "driver.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "driver.jsonl.2.gz").write_bytes(gzip.compress(b"".join(lines[:2])))
    (tmp_path / "driver.jsonl.1").write_bytes(b"".join(lines[2:4]))
    (tmp_path / "driver.jsonl").write_bytes(b"".join(lines[4:]))
    logs = read([tmp_path])
    assert logs.driver["round"].to_list() == [0, 1, 2, 3, 4, 5] and logs.damage == 0


def test_a_damaged_archive_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """What was copied while the disk went full is worth something too."""
    whole = b"".join(some(tmp_path, 5_000))
    (tmp_path / "host0.jsonl").unlink()
    (tmp_path / "host0.jsonl.gz").write_bytes(gzip.compress(whole)[:-2_000])
    logs = read([tmp_path])
    assert logs.damage == 1 and logs.events.height > 100
    assert logs.damaged[0].line == logs.events.height + 1 and "compressed" in logs.damaged[0].why


def test_a_line_without_end_does_not_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a gigabyte without a line end is no log; what comes after such a line is."""
    monkeypatch.setattr(reading, "BLOCK", 1_000)
    monkeypatch.setattr(reading, "LONGEST", 2_000)
    lines = some(tmp_path, 2)
    (tmp_path / "host0.jsonl").write_bytes(lines[0] + b"x" * 50_000 + b"\n" + lines[1])
    logs = read([tmp_path])
    assert steps_of(logs) == [1, 3] and [damage.line for damage in logs.damaged] == [2] and "longer than" in logs.damaged[0].why


def test_a_copy_of_a_log_counts_once(tmp_path: Path) -> None:
    """Logs that were fetched twice, or named twice, must not make an interval look narrower than it is."""
    race(tmp_path / "one", 2, 3)
    race(tmp_path / "two", 2, 3)
    (tmp_path / "link.jsonl").hardlink_to(tmp_path / "one" / "driver.jsonl")
    logs = read([tmp_path, tmp_path / "one"])
    asked = rounds(logs)
    assert (asked.played.height, asked.copies, asked.events.height) == (5, 5, 10)


def test_the_same_round_of_two_runs_is_two_rounds(tmp_path: Path) -> None:
    """Round numbers begin anew in each run."""
    race(tmp_path / "one", 1, 1, run="r1")
    race(tmp_path / "two", 1, 1, run="r2")
    asked = rounds(read([tmp_path]))
    assert (asked.played.height, asked.copies, asked.runs.height) == (4, 0, 2)


def test_fields_of_a_tracepoint_are_kept(tmp_path: Path) -> None:
    """A scenario may note what it likes."""
    made = Made(tmp_path)
    made.write("host0", "kvm_exit", round=0, actor="vcpu0", step=3, clock=4, vcpu=0, reason="hlt")
    logs = read([made.save()])
    assert logs.events["fields"].to_list() == ['{"vcpu": 0, "reason": "hlt"}']


def test_what_holds_no_log_is_told_with_what_to_type(tmp_path: Path) -> None:
    """The directory above, the wrong directory, somebody else's JSON."""
    with pytest.raises(UsageError, match=r"there is no .*/nothing\n  racevisor run NAME --log-dir"):
        read([tmp_path / "nothing"])
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(UsageError, match=r"there are no logs in .*: a log is called NAME.jsonl\n  racevisor run"):
        read([tmp_path])
    (tmp_path / "driver.jsonl").write_text("")
    with pytest.raises(UsageError, match="are empty\n  if the run has just begun, ask again"):
        read([tmp_path])
    (tmp_path / "driver.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match=r"(?s)none of the 1 lines.*driver.jsonl:1: no event of racevisor"):
        read([tmp_path])


def test_a_foreign_file_among_logs_is_named_and_the_logs_are_used(tmp_path: Path) -> None:
    """Other programs log into the same directory."""
    race(tmp_path, 1, 1)
    (tmp_path / "other.jsonl").write_text('{"msg": "hello"}\n{"msg": "again"}\n')
    logs = read([tmp_path])
    assert (logs.damage, logs.foreign, logs.events.height) == (2, [str(tmp_path / "other.jsonl")], 4)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out silently it would make the counts wrong."""
    race(tmp_path, 1, 1)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UsageError, match=r"cannot read .*driver.jsonl: Permission denied\n  leave it out, or make it readable"):
        read([tmp_path])


def test_only_rounds_that_are_asked_about_count(tmp_path: Path) -> None:
    """And what is asked for must be there: a misspelt variant has no bad rounds either."""
    race(tmp_path / "one", 1, 1, run="r1")
    race(tmp_path / "two", 0, 3, run="r2", variant="latch")
    asked = rounds(read([tmp_path]), variant=["latch"])
    assert (asked.played.height, asked.events.height, asked.runs["run"].to_list()) == (3, 6, ["r2"])
    with pytest.raises(UsageError, match="the logs have no variant latsch\n  there is:  before, latch"):
        rounds(read([tmp_path]), variant=["latsch"])
