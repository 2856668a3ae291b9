"""A trace file: one run as the list of its picks, so that it can be run again step by step anywhere.

Two msgpack maps follow each other: a header (format, version, size and SHA-256 of what follows) and the body (what was run, its
picks with their labels, how it ended).  Everything read is checked by hand before it is used; opening a stranger's trace runs
nothing.  The scenario's text travels along to say what differs from the present one, and is never executed from here.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgpack

import actors
from racevisor import __version__
from racevisor.errors import TraceError, UsageError
from racevisor.memory import MODELS
from racevisor.monitor import Violation
from racevisor.scenario import BUILT_IN, Case, Source, built_in, from_source
from racevisor.whole import write_whole

FORMAT = "racevisor-trace"
VERSION = 2
WITHOUT_VCPUS = 1  # the version that did not record how many vCPUs there are: the scenario's own number
EXPLORE, LIVE = "explore", "live"

_MAX_FILE = 256 << 20
_MAX_PICKS = 1_000_000
_MAX_TEXT = 4 << 20
_MAX_WORD = 64 << 10
_MAX_VCPUS = 4096
_STATUSES = ("terminal", "violated", "bounded", "pruned")


@dataclass
class Trace:
    """One recorded run."""

    scenario: str
    #: how the scenario is found again: the name of a built-in one, or an absolute path
    path: str
    source_sha256: str
    source_text: str
    variant: str
    setup: str
    memory: str
    seed: int
    strategy: str
    recorded_by: str  # EXPLORE or LIVE
    picks: list[tuple[str, str]]
    outcome: str
    status: str
    violations: list[Violation] = field(default_factory=list)
    vcpus: int | None = None  # None: the scenario's own number, in a trace of version 1
    machine_sha256: str = ""
    racevisor_version: str = __version__

    @property
    def bad(self) -> bool:
        """Did the recorded run show the bad outcome?"""
        return bool(self.violations)


@cache
def machine_digest() -> str:
    """SHA-256 over the sources of the machine, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(Path(actors.__file__).resolve().parent.glob("*.py"), key=lambda file: file.name):
        text = file.read_bytes()
        digest.update(f"{file.name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def record(
    case: Case,
    picks: list[tuple[str, str]],
    *,
    outcome: str,
    status: str,
    violations: list[Violation],
    seed: int,
    strategy: str,
    recorded_by: str,
) -> Trace:
    """A run of `case` as a trace."""
    path = case.source.path
    if path not in built_in():
        path = str(Path(path).resolve())
    return Trace(
        scenario=case.scenario.name,
        path=path,
        source_sha256=case.source.digest,
        source_text=case.source.text,
        variant=case.variant_name,
        setup=case.setup,
        memory=case.memory,
        seed=seed,
        strategy=strategy,
        recorded_by=recorded_by,
        picks=[(channel, label) for channel, label in picks],
        outcome=outcome,
        status=status,
        violations=violations,
        vcpus=case.vcpus,
        machine_sha256=machine_digest(),
    )


class Shown(Protocol):
    """What an execution has shown: a witness of a search, a round that was played."""

    @property
    def schedule(self) -> list[tuple[str, str]]:
        """(channel, label) of its steps."""

    @property
    def outcome(self) -> str:
        """How it ended, in the scenario's words."""

    @property
    def status(self) -> str:
        """terminal, violated, bounded or pruned."""

    @property
    def violations(self) -> list[Violation]:
        """What is wrong with it."""


def of(case: Case, shown: Shown, *, seed: int, strategy: str, recorded_by: str) -> Trace:
    """What was shown, as a trace."""
    return record(
        case, shown.schedule, outcome=shown.outcome, status=shown.status, violations=shown.violations, seed=seed,
        strategy=strategy, recorded_by=recorded_by,
    )  # fmt: skip


def trace_folder(case: Case, wanted: Path | None) -> Path:
    """Where the traces of a scenario are saved."""
    return wanted if wanted is not None else Path("runs", case.scenario.name)


def trace_name(case: Case, suffix: str = "") -> str:
    """The file name of a trace; names of a user's own variants may hold anything."""
    vcpus = "" if case.vcpus == case.scenario.vcpus else f"-{case.vcpus}vcpus"
    name = f"{case.variant_name}-{case.setup}-{case.memory}{vcpus}{suffix}"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name) + ".trace"


# ---- writing --------------------------------------------------------------------------------------------------------------


def save(trace: Trace, path: Path) -> None:
    """Write the file whole or not at all."""
    body = msgpack.packb(_to_map(trace), use_bin_type=True)
    header = {"format": FORMAT, "version": VERSION, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    try:
        write_whole(path, msgpack.packb(header, use_bin_type=True) + body)
    except OSError as error:
        raise TraceError(
            f"cannot write trace {path}: {error.strerror or error}\n  another folder:  --trace-dir DIRECTORY"
        ) from error


def _to_map(trace: Trace) -> dict[str, Any]:
    return {
        **{name: getattr(trace, name) for name in _WORDS},
        "seed": str(trace.seed),
        "vcpus": trace.vcpus,
        "picks": [list(pick) for pick in trace.picks],
        "violations": [[v.check, v.text, v.step, list(v.fatal)] for v in trace.violations],
    }


# ---- reading --------------------------------------------------------------------------------------------------------------

#: fields that are text, with the longest that is accepted
_WORDS = {
    "scenario": _MAX_WORD,
    "path": _MAX_WORD,
    "source_sha256": 64,
    "source_text": _MAX_TEXT,
    "variant": _MAX_WORD,
    "setup": _MAX_WORD,
    "memory": _MAX_WORD,
    "strategy": _MAX_WORD,
    "recorded_by": _MAX_WORD,
    "outcome": _MAX_WORD,
    "status": _MAX_WORD,
    "machine_sha256": 64,
    "racevisor_version": _MAX_WORD,
}
_FIELDS = {*_WORDS, "seed", "vcpus", "picks", "violations"}


def load(path: Path) -> Trace:
    """Read a trace file; anything else than a sound one is a TraceError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        why = error.strerror or error
        raise TraceError(f"cannot read trace {path}: {why}\n  traces are saved in runs/ by explore and run") from error
    if len(data) > _MAX_FILE:
        _refuse(path, f"is larger than {_MAX_FILE >> 20} MiB, no trace of racevisor is")
    return loads(data, path)


def loads(data: bytes, path: Path) -> Trace:
    """Check and decode the bytes of a trace file; `path` is for messages."""
    header, offset = _header(data, path)
    version = header.get("version")
    if type(version) is not int:
        _refuse(path, "is damaged: its header has no version")
    if version not in (VERSION, WITHOUT_VCPUS):
        raise TraceError(
            f"trace {path} has format version {version}, this racevisor ({__version__}) reads version {VERSION}\n"
            f"  record it again with this racevisor, or replay it with the one that recorded it"
        )
    size, digest = header.get("size"), header.get("sha256")
    if type(size) is not int or not isinstance(digest, str):
        _refuse(path, "is damaged: its header says neither size nor checksum")
    body = data[offset:]
    if len(body) < size:
        _refuse(path, f"is truncated: {len(body)} of {size} bytes are there")
    if len(body) > size or hashlib.sha256(body).hexdigest() != digest:
        _refuse(path, "is damaged: its checksum does not match")
    fields = _decode(body, path)
    try:
        return _from_map(fields, version)
    except _BadError as error:
        _refuse(path, f"is damaged: {error}")


def _header(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=True, **_limits(4096))
    unpacker.feed(data[:4096])
    try:
        header = unpacker.unpack()
        offset = unpacker.tell()
    except msgpack.OutOfData:
        if len(data) < 4096 and _starts_like_a_trace(data):
            _refuse(path, f"is truncated: it ends after {len(data)} bytes, inside its header")
        header, offset = None, 0
    except (ValueError, msgpack.UnpackException, RecursionError):
        header, offset = None, 0
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"{path} is not a trace of racevisor\n  record one:  racevisor explore init_sipi --variant before")
    return header, offset


def _starts_like_a_trace(data: bytes) -> bool:
    start = bytes(msgpack.packb({"format": FORMAT, "version": VERSION, "size": 0, "sha256": ""}))
    start = start[: start.index(b"version")]
    return data.startswith(start) or start.startswith(data)


def _decode(body: bytes, path: Path) -> Any:
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True, **_limits(len(body)))
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        _refuse(path, f"is damaged: {error or type(error).__name__}")


def _limits(size: int) -> dict[str, int]:
    return {
        "max_str_len": min(size, _MAX_TEXT),
        "max_bin_len": 0,
        "max_array_len": min(size, _MAX_PICKS),
        "max_map_len": min(size, 64),
        "max_ext_len": 0,
    }


class _BadError(Exception):
    """What is wrong with the body."""


def _from_map(fields: Any, version: int) -> Trace:
    known = _FIELDS - {"vcpus"} if version == WITHOUT_VCPUS else _FIELDS
    if not isinstance(fields, dict) or set(fields) != known:
        raise _BadError("it lacks fields, or has some that this version does not know")
    for name, longest in _WORDS.items():
        _word(fields[name], name, longest)
    try:
        seed = int(_word(fields["seed"], "seed", 4000))
    except ValueError:
        raise _BadError("the seed is not a number") from None
    if fields["recorded_by"] not in (EXPLORE, LIVE) or fields["status"] not in _STATUSES or fields["memory"] not in MODELS:
        raise _BadError("unknown origin, status or memory model")
    if hashlib.sha256(fields["source_text"].encode()).hexdigest() != fields["source_sha256"]:
        raise _BadError("the scenario's text does not match its hash")
    picks = []
    for pick in _list(fields["picks"], "picks"):
        if not isinstance(pick, list) or len(pick) != 2:
            raise _BadError("a pick is not a channel and a label")
        picks.append((_word(pick[0], "a channel", _MAX_WORD), _word(pick[1], "a label", _MAX_WORD)))
    violations = [_violation(entry, len(picks)) for entry in _list(fields["violations"], "violations")]
    vcpus = fields.get("vcpus")
    if vcpus is not None and (type(vcpus) is not int or not 1 <= vcpus <= _MAX_VCPUS):
        raise _BadError(f"the number of vCPUs is not one of 1 to {_MAX_VCPUS}")
    words = {name: fields[name] for name in _WORDS}
    return Trace(**words, seed=seed, picks=picks, violations=violations, vcpus=vcpus)


def _violation(entry: Any, steps: int) -> Violation:
    if not isinstance(entry, list) or len(entry) != 4:
        raise _BadError("a violation is not check, text, step, fatal steps")
    check, text, step, fatal = entry
    numbers = [*_list(fatal, "fatal steps"), *([] if step is None else [step])]
    if any(type(n) is not int or not 0 <= n < steps for n in numbers):
        raise _BadError("a violation names a step that is not there")
    violation = Violation(_word(check, "a check", _MAX_WORD), _word(text, "a violation", _MAX_WORD), tuple(fatal))
    violation.step = step
    return violation


def _word(value: Any, what: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise _BadError(f"{what} is not text of at most {longest} characters")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _BadError(f"{what} is not a list")
    return value


def _refuse(path: Path, why: str) -> NoReturn:
    raise TraceError(f"trace {path} {why}\n  record it again:  racevisor explore NAME, or racevisor run NAME")


# ---- the case a trace was recorded from -----------------------------------------------------------------------------------


def case_of(trace: Trace, path: Path, scenario: str | None = None) -> Case:
    """The recorded case, from the scenario as it is here now; `scenario` names it if it is not where it was.

    The text is compared before anything of it runs: a trace can name a file, but only run the very scenario it was made from.
    """
    where = scenario or trace.path
    file = BUILT_IN / f"{where}.py" if where in built_in() else Path(where)
    try:
        if not file.is_file() or file.stat().st_size > _MAX_TEXT:
            raise ValueError("there is no such file, or it is no text file")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TraceError(
            f"trace {path} was recorded from scenario {where!r}, which cannot be read here: {error}\n"
            f"  if it is elsewhere:  racevisor replay {path} --scenario FILE.py"
        ) from error
    source = Source(where, text)
    if source.digest != trace.source_sha256:
        raise TraceError(
            f"the scenario changed since trace {path} was recorded\n"
            f"  recorded from {trace.scenario}@{trace.source_sha256[:12]}, {where} is now @{source.digest[:12]}; "
            f"{_first_difference(trace.source_text, text)}\n"
            f"  record it again:  racevisor explore {where} --variant {trace.variant} --setup {trace.setup} "
            f"--memory {trace.memory}{'' if trace.vcpus is None else f' --vcpus {trace.vcpus}'}"
        )
    if "racevisor" not in text:
        _refuse(path, f"names {where}, which is no scenario file")
    try:
        return Case(from_source(source), source, trace.variant, trace.setup, trace.memory, trace.vcpus)
    except UsageError as error:
        raise TraceError(f"trace {path} cannot be replayed: {error}") from error


def _first_difference(old: str, new: str) -> str:
    changed = [line for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0) if line[0] in "+-"][2:]
    if not changed:
        return "the difference is in line ends"
    return f"{len(changed)} lines differ, first: {changed[0][0]} {changed[0][1:].strip()[:60]}"
