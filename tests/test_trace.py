"""A trace file: what is saved is what is read, and whatever else is read is refused in one sentence."""

import contextlib
import copy
import hashlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from racevisor import trace
from racevisor.errors import TraceError
from racevisor.explore import cases, explore_case
from racevisor.monitor import Violation
from racevisor.trace import Trace

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "message_passing.py"
WHERE = Path("a.trace")


def recorded(scenario: Path | str = EXAMPLE) -> Trace:
    """A trace of the example's bad run, found now."""
    case = cases(str(scenario), ["plain"], [], ["pso"])[0]
    witness = explore_case(case).witness
    assert witness is not None
    return trace.record(
        case,
        witness.schedule,
        outcome=witness.outcome,
        status=witness.status,
        violations=witness.violations,
        seed=0,
        strategy="states",
        recorded_by=trace.EXPLORE,
    )


TRACE = recorded()


def written(path: Path, one: Trace = TRACE) -> bytes:
    trace.save(one, path)
    return path.read_bytes()


def sealed(body: bytes, **header: Any) -> bytes:
    """A file with a sound header around any body."""
    about = {"format": trace.FORMAT, "version": trace.VERSION, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return bytes(msgpack.packb({**about, **header})) + body


def fields(data: bytes) -> dict[str, Any]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data)
    unpacker.unpack()
    body: dict[str, Any] = unpacker.unpack()
    return body


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    """Replay compares labels and violations with what stands in the file, so nothing may be lost on the way."""
    one = copy.copy(TRACE)
    one.violations = [Violation("I-I2", "lost", (0, 3)), Violation("I-L1", "vcpu1: HALTED")]
    one.violations[0].step = 3
    one.seed = 1 << 80
    written(tmp_path / "deep" / "er" / "a.trace", one)
    again = trace.load(tmp_path / "deep" / "er" / "a.trace")
    for name in trace._FIELDS - {"violations"}:
        assert getattr(again, name) == getattr(one, name), name
    assert [(v.check, v.text, v.step, v.fatal) for v in again.violations] == [
        ("I-I2", "lost", 3, (0, 3)),
        ("I-L1", "vcpu1: HALTED", None, ()),
    ]
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == ["a.trace"], "no temporary file stays behind"


def test_a_trace_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Nothing already found is lost when something fails."""
    before = written(tmp_path / "a.trace")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(TraceError, match="--trace-dir"):
        trace.save(TRACE, tmp_path / "file" / "a.trace")
    assert (tmp_path / "a.trace").read_bytes() == before


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("sound") / "a.trace")


def test_every_truncation_is_called_one(sound: bytes) -> None:
    """The most likely damage gets its own word."""
    for length in range(len(sound)):
        with pytest.raises(TraceError, match="truncated"):
            trace.loads(sound[:length], WHERE)


@settings(max_examples=300)
@given(data=st.data())
def test_no_flipped_byte_goes_unnoticed(sound: bytes, data: st.DataObject) -> None:
    """A damaged trace must not replay something else, and must not end in a traceback."""
    at = data.draw(st.integers(0, len(sound) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != sound[at]))
    with pytest.raises(TraceError):
        trace.loads(sound[:at] + bytes([value]) + sound[at + 1 :], WHERE)


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x80")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc7\xff\x01" + b"x" * 255)
@example(b"\x91" * 5000)
def test_no_bytes_make_a_traceback(junk: bytes) -> None:
    """Neither as a file, nor as the body of a file with a sound header."""
    for data in (junk, sealed(junk)):
        with pytest.raises(TraceError, match=r"not a trace|truncated|damaged|version"):
            trace.loads(data, WHERE)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400)
@given(field=st.sampled_from(sorted(trace._FIELDS)), value=VALUES)
@example("seed", "9" * 5000)
@example("violations", [["check", "text", 10**6, []]])
@example("violations", [["check", "text", True, [0]]])
@example("violations", [["check", "text", None, [-1]]])
@example("picks", [["P0", "label"], ["P0"]])
@example("memory", "alpha")
def test_a_field_of_any_other_value_is_refused_or_harmless(sound: bytes, field: str, value: Any) -> None:
    """A file may be made on purpose, with a right checksum: what it holds is checked, not trusted."""
    body = {**fields(sound), field: value}
    try:
        loaded = trace.loads(sealed(bytes(msgpack.packb(body))), WHERE)
    except TraceError:
        return
    assert isinstance(loaded, Trace)
    with contextlib.suppress(TraceError):
        trace.case_of(loaded, WHERE)


def test_another_version_is_named(sound: bytes) -> None:
    """A trace of a newer racevisor is not damaged, and the message must not say so."""
    with pytest.raises(TraceError, match=f"version 99, this racevisor .* reads version {trace.VERSION}"):
        trace.loads(sealed(b"whatever", version=99), WHERE)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    """No such file, a folder, a text file."""
    with pytest.raises(TraceError, match="No such file"):
        trace.load(tmp_path / "none.trace")
    with pytest.raises(TraceError, match="directory"):
        trace.load(tmp_path)
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(TraceError, match=r"a\.txt is not a trace of racevisor"):
        trace.load(tmp_path / "a.txt")


def test_a_scenario_that_changed_since_is_named_with_both_hashes(tmp_path: Path) -> None:
    """Replaying against other code would explain a run that never was."""
    mine = tmp_path / "mine.py"
    mine.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    one = recorded(mine)
    assert str(trace.case_of(one, WHERE)) == "message_passing plain/default/pso" or trace.case_of(one, WHERE)
    mine.write_text(EXAMPLE.read_text(encoding="utf-8").replace("data, 42)", "data, 43)"), encoding="utf-8")
    with pytest.raises(TraceError, match="scenario changed") as caught:
        trace.case_of(one, WHERE)
    assert one.source_sha256[:12] in str(caught.value)
    assert hashlib.sha256(mine.read_bytes()).hexdigest()[:12] in str(caught.value)
    assert "data, 42)" in str(caught.value), "and it shows what changed"


def test_a_trace_runs_nothing_but_the_scenario_it_was_made_from(tmp_path: Path) -> None:
    """A stranger's trace may name any file: its text is compared before anything of it is executed."""
    marker = tmp_path / "executed"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    one = copy.copy(TRACE)
    one.path = str(evil)
    with pytest.raises(TraceError, match="changed"):
        trace.case_of(one, WHERE)
    one.source_text = evil.read_text(encoding="utf-8")
    one.source_sha256 = hashlib.sha256(one.source_text.encode()).hexdigest()
    with pytest.raises(TraceError, match="no scenario file"):
        trace.case_of(one, WHERE)
    for nowhere in ("/dev/zero", str(tmp_path), "\0", "x" * 5000):
        one.path = nowhere
        with pytest.raises(TraceError, match="--scenario"):
            trace.case_of(one, WHERE)
    assert not marker.exists()
