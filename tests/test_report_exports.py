"""What other viewers open has to be what they expect; each of them fails silently on what it does not."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from corpus import found
from reports import hostile, lost_init, many, report_of, walked

from racevisor.errors import UsageError
from racevisor.report.beside import other_case
from racevisor.report.mermaid import mermaid
from racevisor.report.page import page
from racevisor.report.perfetto import perfetto
from racevisor.report.shiviz import shiviz
from racevisor.report.whole import Report
from racevisor.scenario import Case

#: under pso the stores of one thread reach memory beside each other
MADE: dict[str, Callable[[], Report]] = {
    "lost_init": lost_init,
    "hostile": hostile,
    "many": lambda: many(40),
    "pso": lambda: report_of(*walked("init_sipi", 3, "plain", "pso"), shrunk=False),
}


@pytest.fixture(scope="module", params=list(MADE))
def report(request: pytest.FixtureRequest) -> Report:
    """Each of them, made when the first test asks for it."""
    return MADE[request.param]()


def events_of(report: Report) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(perfetto(report))["traceEvents"]
    return found


def test_every_flow_has_both_ends_on_slices_and_time_never_goes_back(report: Report) -> None:
    """Perfetto drops a flow without end, and one whose end lies on no slice."""
    events = events_of(report)
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    flows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in timed:
        if event["ph"] in "sf":
            flows[event["id"]].append(event)
    assert len(flows) == sum(len(run.arrows) for run in report.runs)
    slices = {(e["pid"], e["tid"], e["ts"]) for e in timed if e["ph"] == "X" and e["cat"] == "step"}
    for ends in flows.values():
        assert [end["ph"] for end in ends] == ["s", "f"]
        assert ends[0]["name"] == ends[1]["name"] and ends[0]["cat"] == ends[1]["cat"]
        assert all((end["pid"], end["tid"], end["ts"] // 10 * 10) in slices for end in ends)


#: of the document "Trace Event Format": for each phase that is written, the fields that its events must have, and may have
PHASES: dict[str, tuple[dict[str, type], dict[str, type]]] = {
    "X": ({"dur": int}, {"args": dict}),
    "s": ({"id": int}, {}),
    "f": ({"id": int, "bp": str}, {}),
    "M": ({"args": dict}, {}),
}
EVERY: dict[str, type] = {"ph": str, "name": str, "pid": int, "tid": int, "ts": int}
META = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index", "thread_sort_index": "sort_index"}


def test_every_event_has_the_fields_of_the_trace_event_format_and_no_others(report: Report) -> None:
    """What the viewer does not know it leaves out without a word."""
    whole = json.loads(perfetto(report))
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    for event in whole["traceEvents"]:
        must, may = PHASES[event["ph"]]
        must = {**EVERY, **must, **({} if event["ph"] == "M" else {"cat": str})}
        assert set(must) <= set(event) <= {*must, *may}
        assert all(type(value) is {**must, **may}[key] for key, value in event.items())
        assert event["ts"] >= 0 and event.get("dur", 1) > 0
        if event["ph"] == "M":
            assert list(event["args"]) == [META[event["name"]]]
        if event["ph"] == "f":
            assert event["bp"] == "e", "it ends at the slice around it, not at the next one"


def test_slices_of_a_track_are_nested(report: Report) -> None:
    """Slices that overlap by half are drawn on top of each other."""
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events_of(report):
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    named = {(e["pid"], e["tid"]) for e in events_of(report) if e["ph"] == "M" and e["name"] == "thread_name"}
    assert set(tracks) <= named, "every track has a name"
    for slices in tracks.values():
        open_: list[int] = []
        for one in slices:
            while open_ and open_[-1] <= one["ts"]:
                open_.pop()
            assert not open_ or one["ts"] + one["dur"] <= open_[-1]
            open_.append(one["ts"] + one["dur"])


def test_the_clocks_of_the_shiviz_log_are_vector_clocks(report: Report) -> None:
    """ShiViz refuses a log whose hosts do not count their own events, and draws nonsense if the others are not seen."""
    parser, delimiter, blank, *rest = shiviz(report).split("\n")
    assert blank == ""
    text = "\n".join(rest)
    expression = re.compile(parser.replace("(?<", "(?P<"))
    separator = re.compile(delimiter.replace("(?<", "(?P<"), re.MULTILINE)
    parts = separator.split(text)
    assert parts[1::2] == [run.title for run in report.runs]
    for run, part in zip(report.runs, parts[2::2], strict=True):
        events = [match.groupdict() for match in expression.finditer(part)]
        assert len(events) == len(run.events)
        clocks: list[dict[str, int]] = [json.loads(one["clock"]) for one in events]
        count: dict[str, int] = defaultdict(int)
        last: dict[str, dict[str, int]] = defaultdict(dict)
        for one, clock in zip(events, clocks, strict=True):
            host = one["host"]
            count[host] += 1
            assert clock[host] == count[host], "a host counts its own events, one by one"
            assert all(clock[other] >= seen for other, seen in last[host].items()), "and forgets nothing"
            assert all(0 < seen <= count[other] for other, seen in clock.items()), "nobody knows the future"
            last[host] = clock
        for event, clock in zip(run.events, clocks, strict=True):
            for n in event.direct:
                assert all(clock.get(other, 0) >= seen for other, seen in clocks[n].items())


def test_a_longer_run_than_its_order_is_known_for_says_what_opens_it() -> None:
    """Clocks that are guessed would be drawn as if they were true."""
    long = replace(lost_init(), runs=[replace(lost_init().runs[0], ordered=False)])
    with pytest.raises(UsageError, match="perfetto"):
        shiviz(long)


@pytest.mark.parametrize("name", ["lost_init", "hostile"])
def test_mermaid_gets_statements_that_it_knows_and_text_that_is_only_text(name: str) -> None:
    """`;` ends a statement, `#` begins an entity, `<` an element: none of them may come from a name."""
    first, *lines = mermaid(MADE[name]()).splitlines()
    assert first == "sequenceDiagram"
    statement = re.compile(
        r"    (accTitle: (?P<a>.*)|participant A\d+ as (?P<b>.*)|Note over A\d+(,A\d+)?: (?P<c>.*)|A\d+-\)A\d+: (?P<d>.*)"
        r"|rect rgba\(214, 57, 57, 0\.18\)|end)"
    )
    deep = 0
    for line in lines:
        found = statement.fullmatch(line)
        assert found is not None, line
        deep += line.strip().startswith("rect") - (line.strip() == "end")
        text = next(filter(None, found.groupdict().values()), "")
        assert not set(re.sub(r"#\d+;", "", text.replace("<br/>", ""))) & set("#;<>&\"'`\\{}|%")
    assert deep == 0


def test_mermaid_tells_the_lost_init() -> None:
    """What goes into a mail: both stores, marked, under the functions that made them."""
    text = mermaid(lost_init())
    assert "participant A0 as vcpu0" in text
    assert "apic_dm_init()<br/>44: vcpu1.mp_state = INIT_RECEIVED" in text
    assert text.count("rect rgba") == 2
    assert "INIT is lost" in text.replace("#39;", "'")
    assert max(len(re.sub(r"#\d+;", "?", line)) for line in text.splitlines()[-1].split(": ", 1)[1].split("<br/>")) <= 40


def test_every_bug_of_the_corpus_is_drawn_and_exported(bad_cell: Case) -> None:
    """Choices, busy loops, threads that wait for ever, pictures without a step: there is a page and a file for each."""
    told = report_of(bad_cell, found(bad_cell), other=other_case(bad_cell, None))
    assert all(run.events for run in told.runs)
    for run in told.runs:
        assert set(run.marked) <= set(range(len(run.events)))
    assert told.broken[0] in unescape(page(told))
    assert len(json.loads(perfetto(told))["traceEvents"]) > len(told.runs[0].events)
    assert shiviz(told).count("\n=== ") == len(told.runs)
    assert mermaid(told).startswith("sequenceDiagram\n")
