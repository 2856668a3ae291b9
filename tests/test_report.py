"""What a report says of a run: the known numbers of a known race, and nothing that a stranger's text could break."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from reports import HOSTILE, hostile, lost_init, many, report_of, walked

from racevisor import api, trace
from racevisor.cli import cli
from racevisor.commands.report import report_trace
from racevisor.dependence import HappensBefore
from racevisor.errors import NotDeterministic, RacevisorError, TraceError, UsageError
from racevisor.linear import bits
from racevisor.reenact import reenact
from racevisor.report.beside import other_case, same_schedule
from racevisor.report.encode import embedded
from racevisor.report.make import put
from racevisor.report.page import page
from racevisor.report.rounds import rounds_of, traces_in


@pytest.fixture(scope="module")
def lost_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lost INIT as a file."""
    path = tmp_path_factory.mktemp("traces") / "lost.trace"
    api.explore("init_sipi", "before", "plain", "tso", shrink=False).save(path)
    return path


# ---- the model ------------------------------------------------------------------------------------------------------------


def test_a_lost_init_is_told_with_its_numbers() -> None:
    """The race of the README: two lanes, two stores to mp_state, the reversal that heals it."""
    report = lost_init()
    assert [run.key for run in report.runs] == ["found", "bad", "good", "fix"]
    found, bad, good, _ = report.runs
    assert [lane.name for lane in found.lanes] == ["vcpu0", "vcpu1"]
    assert (len(found.events), len(bad.events)) == (52, 47)
    assert found.fatal == found.pair == (40, 51)
    assert bad.pair == (44, 46)
    assert [bad.events[n].words for n in bad.pair] == [
        "vcpu1.mp_state = INIT_RECEIVED reaches memory",
        "mp_state = HALTED reaches memory",
    ]
    assert [good.events[n].words for n in good.pair] == [
        "vcpu1.mp_state = INIT_RECEIVED reaches memory",
        "mp_state = HALTED reaches memory",
    ]
    assert found.broken[0].sentence.startswith("I-I2: vcpu1's INIT is lost")
    assert report.shrunk.endswith("(provably the fewest)")
    assert [(row.variant, row.cells[1].claimed, row.cells[1].found) for row in report.claims] == [
        ("before", "Sometimes", "Sometimes"),
        ("latch", "Never", "Never"),
    ]


def test_the_fix_is_shown_under_the_schedule_of_the_bad_execution() -> None:
    """Whoever reviews a patch asks what becomes of this very race; and that one run ends well is not yet a proof."""
    report = lost_init()
    bad, fix = report.runs[1], report.runs[3]
    assert str(fix.case) == "init_sipi latch/plain/tso"
    assert fix.broken == [] and fix.outcome == "vcpu1 RUNNABLE at CS base 0x9000"
    acted = [run.events[n].thread for run in (bad, fix) for n in range(2)]
    assert acted == ["vcpu1", "vcpu1", "vcpu1", "vcpu1"], "the same threads, in the same order"
    told = [cell[0].strip() for row in report.stories[-1].rows for cell in row.cells]
    assert {"lapic1.pending_events = INIT", "xchg(pending_events, 0) == INIT", "mp_state = INIT_RECEIVED"} <= set(told)
    assert "sipi_vector == 9" in told, "what the patch brings along is shown as well, if there is room"
    assert report.beside is not None and not report.beside.bad
    assert report.beside.search.startswith("Never, exhausted: every reachable state")
    assert "With <b>latch</b> the same schedule ends well." in page(report)


def test_a_thread_that_is_blocked_in_the_other_variant_is_waited_for() -> None:
    """vCPU1 polls for a message that the patch makes visible later: were it skipped, it would never be seen to take it."""
    case = api.case("synic_message", "before", "page_poll")
    found = api.explore("synic_message", "before", "page_poll", shrink=False).verdict.witness
    assert found is not None
    fixed = other_case(case, None)
    assert fixed is not None and fixed.variant_name == "after"
    again = same_schedule(fixed, [channel for channel, _ in found.schedule])
    assert not again.violations and "vcpu1 took unseen" in again.outcome


def test_a_variant_beside_itself_is_refused_and_one_that_is_not_in_the_table_is_not_shown() -> None:
    """There has to be something to compare with."""
    case = api.case("init_sipi", "latch", "plain")
    assert other_case(case, None) is None
    beside = other_case(case, "seed")
    assert beside is not None and str(beside) == "init_sipi seed/plain/tso"
    example = str(Path(__file__).resolve().parent.parent / "examples" / "message_passing.py")
    two = other_case(api.case(example, "plain"), None)
    assert two is not None and two.variant_name == "wmb", "of two, the other one"
    with pytest.raises(UsageError, match="--against before"):
        other_case(case, "latch")
    with pytest.raises(UsageError, match="has no variant"):
        other_case(case, "nobody")


def test_each_step_knows_its_function_its_line_and_the_values_around_it() -> None:
    """Somebody who knows the kernel looks for the line of C that this is."""
    report, bad = lost_init(), lost_init().runs[1]
    posted = bad.events[next(arrow.first for arrow in bad.arrows if arrow.last == bad.pair[1])]
    function = report.functions[posted.stack[-1]]
    assert (function.name, function.file) == ("kvm_emulate_halt", "actors/vcpu.py")
    assert "WRITE_ONCE" in function.lines[posted.line - function.first]
    landed = bad.events[bad.pair[1]]
    assert landed.cell is not None
    assert bad.cells[landed.cell].label == "vcpu1.mp_state"
    assert (landed.before, landed.after, landed.writes) == ("INIT_RECEIVED", "HALTED", True)
    assert (posted.after, posted.writes) == ("HALTED", False), "posted: what it will hold; others see nothing yet"


def test_messages_have_both_ends_and_come_in_order() -> None:
    """An arrow that points back in time would be believed."""
    kicked = report_of(*walked("vcpu_requests", 4, "posted"), shrunk=False).runs
    for run in (*lost_init().runs, *kicked):
        assert all(arrow.first < arrow.last for arrow in run.arrows)
        visible = [event.n for event in run.events if event.shape == "V"]
        arrived = [event.n for event in run.events if event.shape == "T"]
        assert sorted(arrow.last for arrow in run.arrows if arrow.kind == "store") == visible
        assert sorted(arrow.last for arrow in run.arrows if arrow.kind == "ipi") == arrived
    assert {arrow.kind for arrow in kicked[0].arrows} == {"ipi", "store", "wake"}


def test_what_happens_before_a_step_is_what_the_search_takes_for_it(lost_trace: Path) -> None:
    """The few edges that the page has stand for all of happens-before."""
    report = lost_init()
    run = report.runs[2]
    explanation = api.explain(lost_trace).explanation
    assert explanation is not None
    world, execution = reenact(run.case, [*explanation.pairs[0].reversal.good])
    assert [step.channel for step in execution.steps] == [event.channel for event in run.events]
    order = HappensBefore(world)
    for step in execution.steps:
        order.extend(world.channels[step.channel], step)
    known: list[set[int]] = []
    for event in run.events:
        known.append({m for n in event.direct for m in (n, *known[n])})
    assert known == [set(bits(past)) for past in order.past]


def test_locks_are_held_from_their_taking_to_their_giving_up() -> None:
    """Who waits for whom is seen from who holds what."""
    case, found = walked("mmu_notifier", 8, "munmap")
    run = report_of(case, found, shrunk=False).runs[0]
    assert {run.cells[held.cell].label for held in run.held} == {"mm.ptl", "mmu.mmu_lock"}
    for held in run.held:
        assert run.events[held.first].thread == run.lanes[held.lane].name
        assert run.events[held.first].after == run.lanes[held.lane].name
        if held.last is not None:
            assert run.events[held.last].before == run.lanes[held.lane].name
    waited = [wait for wait in run.waits if wait.last is not None]
    assert waited, "with eight vCPUs somebody waits for a lock"
    assert all(run.events[wait.last].shape == "A" for wait in waited if wait.last is not None)


def test_an_ipi_is_drawn_where_it_arrives() -> None:
    """The kick is sent in one lane and felt in another."""
    run = report_of(*walked("vcpu_requests", 4, "posted"), shrunk=False).runs[0]
    taken = next(event for event in run.events if event.shape == "T")
    assert (taken.thread, run.lanes[taken.lane].name) == ("sender1", "vcpu1")
    assert "pcpu1" in taken.words


# ---- the page -------------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Elements and texts as a browser takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def data_of(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read(html).scripts[0])
    return found


def test_names_that_break_out_of_html_do_not() -> None:
    """Every text of a trace is a stranger's; two script elements are ours, and there is nothing else that runs."""
    html = page(hostile())
    reader = read(html)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert "<!--" not in html
    assert "\u2028" not in reader.scripts[0]
    data = data_of(html)
    assert data["runs"][0]["lanes"][0][0] == HOSTILE, "and still it is told as it is"
    assert any(HOSTILE in text for text in data["texts"])


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "\u2028\u2029", "\U0001f600", "&lt;"])
def test_embedded_json_is_json_and_ends_no_element(text: str) -> None:
    """`</script>` inside a string ends the element, whatever JSON thinks of it."""
    told = embedded({text: [text]})
    assert json.loads(told) == {text: [text]}
    assert told.isascii()
    assert not set("<>&") & set(told)


def test_the_page_names_no_place_and_asks_for_nothing() -> None:
    """It opens offline, and tells nothing about the machine it was made on."""
    html = page(lost_init())
    reader = read(html)
    assert [a for _, attributes in reader.tags if (a := attributes.get("src"))] == []
    links = [a for _, attributes in reader.tags if (a := attributes.get("href"))]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert re.findall(r"(?:https?:)?//\w[^\s\"']*\.\w", html.replace("//www.w3.org/", "")) == []
    assert str(Path(__file__).resolve().parent.parent) not in html
    assert "default-src &#x27;none&#x27;" in html


def test_ten_thousand_steps_of_a_thousand_actors_fit_in_two_megabytes() -> None:
    """It goes by mail."""
    report = many()
    assert len(report.runs[0].events) >= 10_000
    assert len(report.runs[0].lanes) >= 1_000
    assert len(page(report).encode()) <= 2_000_000


def test_the_story_is_there_without_javascript() -> None:
    """The two short interleavings and the reason are HTML."""
    html = page(lost_init())
    assert html.count('<figure class="story') == 3
    assert "The other way round it ends well" in html
    assert 'href="#run=bad&amp;step=46"' in html


# ---- a directory ----------------------------------------------------------------------------------------------------------


def rounds(folder: Path, outcomes: list[tuple[str, bool]], name: str = "driver.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"event": "round", "run": "r", "scenario": "init_sipi", "variant": "before", "setup": "plain", "memory": "tso"}
    bad = [{"check": "I-I2", "text": "lost", "step": None}]
    lines = [
        json.dumps({**told, "round": n, "outcome": outcome, "violations": bad if is_bad else [], "messages": 10, "seconds": 0.5})
        for n, (outcome, is_bad) in enumerate(outcomes)
    ]
    (folder / name).write_text("\n".join(lines) + '\n{"event": "round", "cut o', encoding="utf-8")


def test_the_rounds_of_a_directory_are_counted_from_its_log(tmp_path: Path) -> None:
    """Also where the last line was being written, and from the older files of a log that is bounded."""
    rounds(tmp_path / "logs", [("fine", False), ("lost", True)])
    rounds(tmp_path / "logs", [("lost", True)], "driver.jsonl.1")
    (counted,) = rounds_of(tmp_path)
    assert (counted.rounds, counted.bad, counted.stuck, counted.messages) == (3, 2, 2, 30)
    assert counted.outcomes == {"lost": 2, "fine": 1}
    assert counted.bad_outcomes == {"lost": 2}
    counts = {"rounds": 900, "bad": 9, "stuck": 1, "messages": 5, "crossed": 1, "aborted": 2}
    state = {"counts": counts, "seconds": 60, "outcomes": {"fine": 891, "lost": 9}, "bad_outcomes": {"lost": 9}}
    (tmp_path / "stress.json").write_text(json.dumps(state), encoding="utf-8")
    (counted,) = rounds_of(tmp_path)
    assert (counted.rounds, counted.bad, counted.aborted) == (900, 9, 2), "the log of a stress drops its oldest lines"


def test_the_first_bad_trace_of_a_directory_is_drawn(tmp_path: Path, lost_trace: Path) -> None:
    """Round 2 before round 10, and the one that was played before its shrunk form."""
    for name in ("a-10.trace", "a-2.trace", "a-2-shrunk.trace"):
        (tmp_path / name).write_bytes(lost_trace.read_bytes())
    assert [path.name for path in traces_in(tmp_path)] == ["a-2.trace", "a-10.trace", "a-2-shrunk.trace"]
    (tmp_path / "a-1.trace").write_bytes(b"damaged")
    rounds(tmp_path, [("lost", True)])
    done = CliRunner().invoke(cli, ["report", str(tmp_path), "--search", "0", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["trace"], told["rounds"], told["steps"]) == ("a-2.trace", 1, 52)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in html and "a-10.trace" in html


# ---- the command ----------------------------------------------------------------------------------------------------------


def made(source: Path, output: Path | None = None, format_: str | None = None) -> int:
    return report_trace(source, output, format_, True, search=0.0, shrink_seconds=2.0)


def test_the_ending_says_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], lost_trace: Path) -> None:
    """`-o out.mmd` needs no option beside it."""
    for name, kind in (("a.html", "html"), ("a.json", "perfetto"), ("a.shiviz", "shiviz"), ("a.md", "mermaid")):
        assert made(lost_trace, tmp_path / name) == 0
        assert json.loads(capsys.readouterr().out)["format"] == kind
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("```mermaid\nsequenceDiagram\n")


@pytest.mark.parametrize(
    ("source", "output", "error", "words"),
    [
        ("lost.trace", "", UsageError, "is a directory"),
        ("lost.trace", "out.pdf", UsageError, "ending says nothing"),
        ("lost.trace", "lost.trace/out.html", UsageError, "cannot write"),
        ("missing.trace", "out.html", TraceError, "cannot read trace"),
        ("empty", "out.html", UsageError, "no trace and no log"),
        ("text.trace", "out.html", TraceError, "is not a trace"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    tmp_path: Path, source: str, output: str, error: type[RacevisorError], words: str, lost_trace: Path
) -> None:
    """What, where, and what to type next; a directory is not overwritten, and no half of a page is left."""
    (tmp_path / "lost.trace").write_bytes(lost_trace.read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.trace").write_text("hello", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        made(tmp_path / source, tmp_path / output)
    assert "\n  " in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_scenario_is_searched_and_what_it_shows_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a name to a page in one command; of a version that is right, the page has the proof and the simplest run."""
    bad: dict[str, Any] = {"setup": "munmap", "search": 5.0}
    assert report_trace(Path("mmu_notifier"), tmp_path / "a.html", None, True, **bad) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bad"], told["runs"], told["trace"]) == (True, ["found", "bad", "good", "fix"], "")
    assert (told["beside"]["variant"], told["beside"]["bad"], told["beside"]["finding"]) == ("after", False, "Never")
    assert report_trace(Path("mmu_notifier"), tmp_path / "b.html", None, True, variant="after", **bad) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bad"], told["runs"], told["beside"]) == (False, ["found"], None)
    html = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "Nothing is wrong in this run." in html and "search: Never, exhausted" in html
    assert "racevisor explore mmu_notifier --variant after --setup munmap --memory tso" in html
    with pytest.raises(UsageError, match="leave out --search 0"):
        report_trace(Path("mmu_notifier"), tmp_path / "c.html", None, True, search=0.0)
    with pytest.raises(UsageError, match="no trace, no directory and no scenario nobody"):
        report_trace(Path("nobody"), tmp_path / "c.html", None, True)


def test_a_trace_is_of_one_cell_and_no_other_is_asked_of_it(tmp_path: Path, lost_trace: Path) -> None:
    """`--memory pso` with a trace of tso would be ignored, and believed."""
    with pytest.raises(UsageError, match="is of one variant"):
        report_trace(lost_trace, tmp_path / "c.html", None, True, memory="pso")


def test_a_run_that_no_browser_can_draw_is_sent_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_trace: Path
) -> None:
    """A page that freezes its reader is no page."""
    monkeypatch.setattr("racevisor.report.make.MOST", 51)
    with pytest.raises(UsageError, match="--format perfetto"):
        made(lost_trace, tmp_path / "out.html")
    assert made(lost_trace, tmp_path / "out.json") == 0


def test_the_trace_itself_is_not_overwritten(tmp_path: Path, lost_trace: Path) -> None:
    """`--format html -o x.trace` would lose what was found."""
    path = tmp_path / "x.trace"
    path.write_bytes(lost_trace.read_bytes())
    with pytest.raises(UsageError, match="the trace itself"):
        made(path, path, "html")


def test_a_trace_that_does_not_replay_is_not_drawn(tmp_path: Path, lost_trace: Path) -> None:
    """A picture of another run is worse than none."""
    recorded = trace.load(lost_trace)
    changed = tmp_path / "changed.trace"
    trace.save(replace(recorded, outcome="something else"), changed)
    with pytest.raises(NotDeterministic, match="racevisor replay"):
        made(changed, tmp_path / "out.html")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Whoever has the page open, or mails it meanwhile, gets the old one or the new one."""
    path = tmp_path / "out.html"
    put(path, "old")
    inode = path.stat().st_ino
    put(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert path.stat().st_ino != inode
    assert [file.name for file in tmp_path.iterdir()] == ["out.html"]
