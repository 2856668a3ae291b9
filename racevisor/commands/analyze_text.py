"""The answers of `racevisor analyze` as text: a heading for each question, a line for each case, and a table below it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from racevisor.analysis.report import Report
from racevisor.analysis.rounds import some_but_not_all
from racevisor.analysis.schema import CASE
from racevisor.analysis.stuck import WAITS
from racevisor.commands.output import glyphs
from racevisor.picture import UNICODE

#: So many damaged lines are named; --json names more.
DAMAGED = 5
#: Width of a full bar, in characters.
BAR = 20

#: Units of time: the name, the seconds, and below how many seconds it is taken.
_UNITS = (("us", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, math.inf))

Row = dict[str, Any]


def print_report(out: Console, done: Report, limit: int) -> None:
    """All that was asked, `limit` rows of each table; where nothing was, what is empty is left out."""
    _head(out, done)
    tellers: dict[str, Callable[[Console, Report, int], bool]] = {
        "cases": _cases,
        "outcomes": _outcomes,
        "compare": _compare,
        "rate": _rate,
        "first": _first,
        "orders": _orders,
        "messages": _messages,
        "events": _events,
        "stuck": _stuck,
    }
    for name, tell in tellers.items():
        if name in done.tables and not (name == "cases" and "outcomes" in done.tables):
            if not tell(out, done, limit) and name in done.asked:
                out.print()
                out.print(f"{name}: nothing in these logs")
    _damage(out, done)


def _head(out: Console, done: Report) -> None:
    logs, asked = done.logs, done.rounds
    bad, rounds = int(asked.played["bad"].sum()), asked.played.height
    runs = asked.played["run"].n_unique()
    parts = [f"{rounds:,} round{_s(rounds)} of {runs:,} run{_s(runs)}", f"{bad:,} bad"]
    if asked.aborted.height:
        parts.append(f"{asked.aborted.height:,} aborted")
    out.print(Text(", ".join(parts), style="bold"))
    about = f"{asked.events.height:,} events of hosts; {logs.lines:,} lines in {len(logs.files):,} file{_s(len(logs.files))}"
    out.print(Text(about, style="dim"))


# ---- how rounds ended ---------------------------------------------------------------------------------------------------------


def _cases(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["cases"]
    for row in frame.head(limit).iter_rows(named=True):
        out.print()
        _case_line(out, row)
    return frame.height > 0


def _case_line(out: Console, row: Row) -> None:
    out.print(Text(case_name(row), style="bold"), soft_wrap=True)
    parts = [f"{row['rounds']:,} round{_s(row['rounds'])}"]
    if row["rounds"]:
        parts.append(f"{row['bad']:,} bad: {percent(row['share'])}, 95 % interval {_span(row)}")
    if row["stuck"]:
        parts.append(f"{row['stuck']:,} stuck")
    if row["aborted"]:
        parts.append(f"{row['aborted']:,} aborted")
    refuted = (row["claimed"] == "Never" and row["bad"] > 0) or (row["claimed"] == "Always" and row["bad"] < row["rounds"])
    if row["claimed"]:
        parts.append(f"claimed {row['claimed']}{': refuted' if refuted else ''}")
    out.print(Text("; ".join(parts), style="bold red" if refuted else ""), soft_wrap=True)


def _outcomes(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["outcomes"]
    heads = {case_key(row): row for row in done.tables["cases"].iter_rows(named=True)} if "cases" in done.tables else {}
    for case, rows in _by_case(frame):
        out.print()
        head = heads.pop(case_key(case), None)
        if head is not None:
            _case_line(out, head)
        else:
            out.print(Text(case_name(case), style="bold"), soft_wrap=True)
        table = _table(("rounds", "r"), ("share", "r"), ("95 % interval", "r"), ("outcome", ""), ("", ""))
        for row in rows[:limit]:
            bad, count = row["bad"], row["count"]
            mark = "" if not bad else "bad" if bad == count else f"{bad:,} of them bad"
            style = "bold red" if bad == count else ""
            outcome = Text(row["outcome"] if row["outcome"] is not None else "?", style=style)
            table.add_row(f"{count:,}", percent(row["share"]), _span(row), outcome, Text(mark, style="bold red"))
        out.print(table)
        _more(out, len(rows) - limit, "outcome")
    for head in heads.values():  # all of its rounds were aborted
        out.print()
        _case_line(out, head)
    return frame.height > 0


def _compare(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["compare"]
    if not frame.height:
        return False
    alike = [column for column in CASE if column != "variant"]
    _title(out, "One variant against another: bad rounds")
    for _, part in frame.head(limit).group_by(alike, maintain_order=True):
        rows = part.to_dicts()
        out.print(Text(case_name(rows[0], variant=False), style="bold"), soft_wrap=True)
        table = _table(("variant", ""), ("bad", "r"), ("share", "r"), ("difference", "r"), ("95 % interval", "r"), ("", ""))
        one = rows[0]
        table.add_row(Text(one["variant"], style="bold"), _of(one["bad"], one["rounds"]), percent(one["share"]), "", "", "")
        for row in rows:
            word = "" if not row["differs"] else "fewer" if row["difference"] > 0 else "more"
            style = "green" if word == "fewer" else "bold red" if word == "more" else "dim"
            table.add_row(
                Text(row["other"], style="bold"),
                _of(row["bad_other"], row["rounds_other"]),
                percent(row["share_other"]),
                _points(-row["difference"]),
                f"{_points(-row['high'])} to {_points(-row['low'])}",
                Text(word or "undecided", style=style),
            )
        out.print(table)
    _more(out, frame.height - limit, "comparison")
    return True


def _rate(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["rate"]
    if not frame.height:
        return False
    _title(out, "Over time (UTC)")
    cases = list(_by_case(frame))
    telling = [one for one in cases if "rate" in done.asked or any(row["bad"] for row in one[1])]
    full = "█" if glyphs(out) is UNICODE else "#"
    for case, rows in telling:
        out.print(Text(f"{case_name(case)}: in slots of {_seconds(rows[0]['width'])}", style="bold"), soft_wrap=True)
        most = max(row["share"] for row in rows)
        table = _table(
            ("from", ""), ("rounds", "r"), ("a second", "r"), ("bad", "r"), ("share", "r"), ("95 % interval", "r"), ("", "")
        )
        day = ""
        for row in rows:
            begin = row["begin"].strftime("%Y-%m-%d %H:%M:%S")
            shown, day = (begin[11:] if begin[:10] == day else begin), begin[:10]
            bar = full * math.ceil(BAR * row["share"] / most) if most and out.width >= 100 else ""
            speed = "" if row["per_second"] is None else f"{row['per_second']:,.1f}"
            count, share = f"{row['rounds']:,}", percent(row["share"])
            table.add_row(
                Text(shown, justify="right"), count, speed, f"{row['bad']:,}", share, _span(row), Text(bar, style="red")
            )
        out.print(table)
    if len(telling) < len(cases):
        quiet = len(cases) - len(telling)
        out.print(Text(f"{quiet:,} case{_s(quiet)} without a bad round: --table rate tells of all", style="dim"))
    return True


def _first(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["first"]
    if not frame.height:
        return False
    _title(out, "The first bad round")
    for row in frame.head(limit).iter_rows(named=True):
        out.print(Text(case_name(row), style="bold"), soft_wrap=True)
        when = f" at {row['time']:%Y-%m-%d %H:%M:%S}" if row["time"] is not None else ""
        after = f", {_seconds(row['after'])} after the first of its run" if row["after"] else ""
        out.print(f"  round {row['round']} of run {row['run'] or '?'}{when}{after}", soft_wrap=True)
        out.print(Text(f"  {row['check']}: {row['text']}", style="bold red"), soft_wrap=True)
        if row["step"] is not None:
            out.print(f"  at step {row['at']}, {row['actor']}: {row['step']}", soft_wrap=True)
            out.print(Text(f"     {row['step_file']}:{row['step_line']}", style="dim"), soft_wrap=True)
        out.print(f"  ends with: {row['outcome']}", soft_wrap=True)
        out.print(Text(f"     {row['file']}:{row['line']}", style="dim"), soft_wrap=True)
    _more(out, frame.height - limit, "case")
    return True


# ---- why --------------------------------------------------------------------------------------------------------------------


def _orders(out: Console, done: Report, limit: int) -> bool:
    said = done.orders
    assert said is not None
    if not said.rounds:
        if done.rounds.played["bad"].any():
            _title(out, "Orders that go with bad rounds")
            out.print("no steps were logged; with them:  racevisor run NAME --log-steps", soft_wrap=True)
            return True
        return False
    if not said.bad or said.bad == said.rounds:
        if said.bad:
            _title(out, "Orders that go with bad rounds")
            out.print(f"all {said.rounds:,} rounds with steps were bad: there is nothing to hold them against")
            text = some_but_not_all(done.rounds.played)
            if text is not None:
                out.print(f"some of them:  --bad {shlex.quote(text)}", soft_wrap=True)
        return bool(said.bad)
    frame = said.table.filter(pl.col("least") > 0)
    _title(out, "Orders that go with bad rounds, and the other way round with good ones")
    rests = f"{said.rounds:,} rounds with steps, {said.bad:,} of them bad; {said.both:,} pair{_s(said.both)} seen in both orders"
    out.print(Text(rests, style="dim"), soft_wrap=True)
    if not frame.height:
        out.print("no order makes a difference that these rounds could show")
    for case, rows in _by_case(frame.head(limit)):
        out.print(Text(case_name(case), style="bold"), soft_wrap=True)
        table = _table(("bad", "r"), ("difference", "r"), ("95 % interval", "r"), ("order", ""))
        for row in rows:
            order = Text.assemble((row["first"], "red"), "\n  then ", (row["then"], "red"))
            table.add_row(_of(row["bad"], row["rounds"]), _points(row["difference"]), _point_span(row), order)
            alike = f", and so {row['alike']:,} more pair{_s(row['alike'])}" if row["alike"] else ""
            table.add_row(_of(row["bad_other"], row["rounds_other"]), "", "", Text(f"the other way round{alike}", style="green"))
        out.print(table)
    _more(out, frame.height - limit, "pair")
    if frame.height:
        words = "An interval is of one pair; of many pairs, some differ by chance.  #2: the second time in its round."
        out.print(Text(words, style="dim"))
    for note in said.notes:
        out.print(Text(note, style="dim"))
    return True


def _messages(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["messages"]
    if not frame.height:
        return False
    _title(out, "Messages between hosts")
    trips = {"round trip": "from the question to its answer, by one clock", "one way": "from host to host, by the clocks of both"}
    for what, words in trips.items():
        rows = frame.filter(pl.col("what") == what).to_dicts()
        if rows:
            out.print(Text(f"{what}: {words}", style="bold"), soft_wrap=True)
            table = _table(
                ("message", ""), ("op", ""), ("count", "r"), ("median", "r"), ("90 %", "r"), ("99 %", "r"), ("longest", "r")
            )
            for row in rows[:limit]:
                times = (_seconds(row[name]) for name in ("median", "p90", "p99", "longest"))
                table.add_row(row["message"], row["op"] or "", f"{row['count']:,}", *times)
            out.print(table)
            _more(out, len(rows) - limit, "kind")
    return True


def _events(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["events"]
    if not frame.height:
        return False
    _title(out, "Events of hosts")
    table = _table(("event", ""), ("kind", ""), ("count", "r"), ("in rounds", "r"), ("a round", "r"))
    for row in frame.head(limit).iter_rows(named=True):
        each = f"{row['count'] / row['rounds']:,.1f}"
        table.add_row(row["event"], row["kind"] or "", f"{row['count']:,}", f"{row['rounds']:,}", each)
    out.print(table)
    _more(out, frame.height - limit, "kind")
    return True


def _stuck(out: Console, done: Report, limit: int) -> bool:
    frame = done.tables["stuck"]
    if not frame.height:
        return False
    _title(out, "In flight at the end of rounds that did not end well")
    for case, rows in _by_case(frame):
        out.print(Text(case_name(case), style="bold"), soft_wrap=True)
        table = _table(("rounds", "r"), ("ended", ""), ("actor", ""), ("", ""), ("for instance", ""))
        for row in rows[:limit]:
            what = f"waits at {row['what']}" if row["state"] == WAITS else f"{row['what']}: {row['state']}"
            example = f"round {row['round']} of {row['run'] or '?'}"
            table.add_row(_of(row["rounds"], row["of"]), row["ended"], row["actor"], Text(what), Text(example, style="dim"))
        out.print(table)
        _more(out, len(rows) - limit, "thing")
    return True


# ---- what could not be used -------------------------------------------------------------------------------------------------


def _damage(out: Console, done: Report) -> None:
    logs = done.logs
    if not (logs.damage or logs.growing or done.rounds.copies):
        return
    out.print()
    if logs.damage:
        words = f"{logs.damage:,} damaged line{_s(logs.damage)} left out, all others used:"
        out.print(Text(words, style="yellow"), soft_wrap=True)
        for damage in logs.damaged[:DAMAGED]:
            out.print(Text(f"  {damage}", style="yellow"), soft_wrap=True)
        if logs.damage > DAMAGED:
            out.print(Text(f"  ... and {logs.damage - DAMAGED:,} more; --json names them", style="yellow"))
    for name in logs.foreign:
        out.print(Text(f"no event of racevisor in {name}", style="yellow"), soft_wrap=True)
    for name in logs.growing:
        out.print(Text(f"still being written, its last line is left for later: {name}", style="dim"), soft_wrap=True)
    if done.rounds.copies:
        out.print(
            Text(f"{done.rounds.copies:,} rounds were told more than once, as by a copy of a log, and count once", style="dim")
        )


# ---- words ------------------------------------------------------------------------------------------------------------------


def case_key(row: Row) -> tuple[Any, ...]:
    """What tells cases apart."""
    return tuple(row[column] for column in CASE)


def case_name(row: Row, *, variant: bool = True) -> str:
    """`init_sipi before/plain/tso, 2 vCPUs, dedicated`."""
    parts = [row["variant"]] if variant else []
    path = "/".join(part or "?" for part in (*parts, row["setup"], row["memory"]))
    vcpus = f", {row['vcpus']} vCPU{_s(row['vcpus'])}" if row["vcpus"] is not None else ""
    return f"{row['scenario'] or 'unknown scenario'} {path}{vcpus}{', ' + row['placement'] if row['placement'] else ''}"


def percent(share: float) -> str:
    """A share for a column; what is not all and not nothing does not look like it."""
    text = f"{100 * share:.1f}%"
    if text == "0.0%" and share > 0:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and share < 1 else text


def _span(row: Row) -> str:
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}%"


def _point_span(row: Row) -> str:
    return f"{_points(row['low'])} to {_points(row['high'])}"


def _points(difference: float) -> str:
    """Percentage points, with their sign."""
    points = round(100 * difference, 1)
    return f"{points:+.1f}" if points else "0.0"


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}"


def _seconds(seconds: float) -> str:
    """With the unit that fits."""
    if seconds < 0:
        return f"-{_seconds(-seconds)}"
    unit, size, _ = next(one for one in _UNITS if seconds < one[2])
    return f"{seconds / size:.3g} {unit}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _by_case(frame: pl.DataFrame) -> Iterator[tuple[Row, list[Row]]]:
    for _, part in frame.group_by(CASE, maintain_order=True):
        rows = part.to_dicts()
        yield rows[0], rows


def _title(out: Console, text: str) -> None:
    out.print()
    out.print(Text(text, style="cyan"), soft_wrap=True)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading, side in columns:
        table.add_column(heading, justify="right" if side else "left", no_wrap=bool(side))
    return table


def _more(out: Console, count: int, what: str) -> None:
    if count > 0:
        out.print(Text(f"... and {count:,} more {what}{_s(count)} (--limit)", style="dim"))
