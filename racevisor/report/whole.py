"""A whole report: the runs of one trace, why it went wrong, what was claimed and found, and how rounds ended."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from racevisor.explain import good_picture
from racevisor.explore import Verdict, explore_case
from racevisor.memory import MODELS
from racevisor.picture import Picture
from racevisor.reason import Reason
from racevisor.report.beside import Beside, cells_alike, judged_cells, same_schedule, with_news
from racevisor.report.model import Run, drawn
from racevisor.report.rounds import Rounds
from racevisor.report.story import Story, story
from racevisor.report.watch import Function, Sources
from racevisor.reversals import Pick
from racevisor.scenario import Case, claim

#: a longer run that was not shrunk is drawn as lanes only
LONGEST_STORY = 2_000

FOUND, SHRUNK, GOOD, FIXED = "found", "bad", "good", "fix"


@dataclass(frozen=True)
class Cell:
    """One cell of the table of verdicts: claimed, found (empty if it was not searched here), and is it the one of the trace?

    `exhausted`: has the search seen all there is?
    """

    memory: str
    claimed: str
    found: str
    confirmed: bool
    here: bool
    exhausted: bool = False


@dataclass(frozen=True)
class Claims:
    """A variant's row."""

    variant: str
    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Named:
    """A trace of the directory: its file's name, how many steps it has, is it bad, how it ended."""

    name: str
    steps: int
    bad: bool
    outcome: str


@dataclass
class Report:
    """All that a page shows."""

    title: str
    about: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    outcome: str = ""
    search: str = ""
    beside: Beside | None = None
    runs: list[Run] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    shrunk: str = ""
    why: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    setup: str = ""
    claims: list[Claims] = field(default_factory=list)
    ledgers: list[tuple[str, str]] = field(default_factory=list)
    rounds: list[Rounds] = field(default_factory=list)
    traces: list[Named] = field(default_factory=list)
    drawn_trace: str = ""
    commands: list[tuple[str, str]] = field(default_factory=list)


def tell(
    report: Report, case: Case, picks: Sequence[Pick], *, live: bool, told: Reason | None = None, other: Case | None = None
) -> None:
    """Add the runs and the story of a trace of `case`; `told` is why it went wrong, shrunk, perhaps in a smaller machine.

    `other` is another variant: it is shown under the schedule of the bad execution.
    """
    sources = Sources()
    found, world, execution = drawn(case, picks, sources, key=FOUND, title="As recorded", past_violations=live)
    report.runs.append(found)
    report.functions = sources.functions
    report.broken = [broken.sentence for broken in found.broken]
    report.outcome = found.outcome
    if told is None or told.shrunk is None:
        if len(found.events) > LONGEST_STORY:
            return
        picture = Picture(case, world, execution)
        if not found.broken:
            picture.about = judged_cells(picture)
        report.stories.append(story(picture, title="The run", key=FOUND, below=_end(found.outcome)))
    else:
        report.shrunk = told.shrunk.sentence() + ("" if told.case is case else f"; the same check fails in {told.case}")
        picture = _explain(report, found, told, sources)
        case = told.case
    if other is not None and found.broken:
        _beside(report, case.like(other.variant_name), picture, sources)


def _explain(report: Report, found: Run, told: Reason, sources: Sources) -> Picture:
    """Returns the picture of the bad execution."""
    explanation, shown = told.explanation, told.witness
    assert explanation is not None
    case, late = explanation.case, explanation.races.late
    named = explanation.pairs[0].pair if explanation.pairs else None
    pair = () if named is None else (named.first, named.second)
    schedule = [*shown.schedule, *late]
    about = "" if str(case) == str(found.case) else f"of {case}"
    bad, world, execution = drawn(
        case, schedule, sources, key=SHRUNK, title="Shrunk", about=about, past_violations=bool(late), pair=pair
    )
    same = [name for name, _ in schedule] == [event.channel for event in found.events]
    if same:
        found.pair = bad.pair
        bad = found
    else:
        report.runs.append(bad)
        found.pair = _again(found, bad)
    picture = Picture(case, world, execution)
    picture.marked |= {n for n in pair if n is not None}
    outcome = shown.outcome if shown.outcome != "None" else ""
    report.stories.append(story(picture, title="The bad execution", key=bad.key, below=_end(outcome)))
    drawn_good = good_picture(explanation)
    if drawn_good is not None and named is not None:
        nearest, left = drawn_good
        nearest.about = cells_alike(picture, nearest)
        reversal = explanation.pairs[0].reversal
        marks = (named.good_first, named.good_second)
        good, _, _ = drawn(case, reversal.good, sources, key=GOOD, title="Nearest good", about=about, pair=marks)
        report.runs.append(good)
        below = (*((f"… and {left:,} more steps, in which nothing goes wrong",) if left else ()), *_end(reversal.outcome))
        report.stories.append(story(nearest, title="The nearest good one", key=GOOD, below=below))
    report.why = explanation.why(72)[1:]
    report.more = explanation.whole(100)
    return picture


def _beside(report: Report, other: Case, bad: Picture, sources: Sources) -> None:
    """The other variant under the schedule of `bad`: a run, its story, and how it ends."""
    found = same_schedule(other, [step.channel for step in bad.steps])
    name = other.variant_name
    run, world, execution = drawn(other, found.schedule, sources, key=FIXED, title=f"With {name}", about=f"of {other}")
    report.runs.append(run)
    picture = Picture(other, world, execution)
    picture.about = set() if run.broken else with_news(bad, picture, cells_alike(bad, picture))
    title = f"{name}: the same schedule, as far as it goes"
    below = (*(broken.sentence for broken in run.broken), *_end(run.outcome))
    report.stories.append(story(picture, title=title, key=FIXED, below=below))
    report.beside = Beside(name, other.variant.about, bool(run.broken), run.outcome)


def _end(outcome: str) -> tuple[str, ...]:
    return (f"ends with: {outcome}",) if outcome else ()


def _again(found: Run, bad: Run) -> tuple[int, ...]:
    """The pair in the recorded run, () where it is not known.

    It is known where the broken check names both steps, and as many there; or if in the same machine the same channels do the
    same for the same time, in the same order.
    """
    here = next((one for one in bad.broken if one.fatal and set(bad.pair) <= set(one.fatal)), None)
    if here is not None and bad.pair:
        there = next((one for one in found.broken if one.check == here.check and len(one.fatal) == len(here.fatal)), None)
        if there is not None:
            return tuple(there.fatal[here.fatal.index(n)] for n in bad.pair)
    if found.case is not bad.case:
        return ()
    known = {name: n for n, name in _occurrences(found)}
    names = dict(_occurrences(bad))
    pair = tuple(known[names[n]] for n in bad.pair if names[n] in known)
    return pair if len(pair) == len(bad.pair) and list(pair) == sorted(pair) else ()


def _occurrences(run: Run) -> Iterator[tuple[int, tuple[object, int]]]:
    """For each step what it does, and for which time its channel does that."""
    count: Counter[object] = Counter()
    for event in run.events:
        name = (event.channel, event.words)
        count[name] += 1
        yield event.n, (name, count[name])


def describe(report: Report, case: Case) -> None:
    """What the case is about, in the scenario's own words."""
    scenario = case.scenario
    first = (inspect.getdoc(type(scenario)) or "").split("\n\n")[0].replace("\n", " ").strip()
    told = [
        ("race", first),
        ("variant", f"{case.variant_name}: {case.variant.about}"),
        ("set-up", f"{case.setup}: {scenario.setups[case.setup].about}"),
        ("patch", scenario.patch),
    ]
    report.about = [(name, text) for name, text in told if text]


def judge(report: Report, case: Case, seconds: float, other: Case | None = None, known: Verdict | None = None) -> None:
    """Claims of the case's variant and of `other` in its set-up; their cells of the case's memory model are searched.

    At most `seconds` for each of the two; 0: nothing is searched.  `known` is the case's own verdict if there is one already.
    """
    report.setup = case.setup
    for one in filter(None, (case, other)):
        verdict = known if one is case else None
        if verdict is None and seconds:
            verdict = explore_case(one, budget=seconds)
        cells = (_cell(word, model, verdict, one, case) for model, word in _words(one))
        report.claims.append(Claims(one.variant_name, one.variant.about, tuple(cells)))
        if verdict is None:
            continue
        told = verdict.ledger.sentence()
        report.ledgers.append((str(one).partition(" ")[2], told))
        said = f"{verdict.finding}, {told}"
        if report.runs and one.vcpus != report.runs[0].case.vcpus:
            said = f"with {one.vcpus} vCPUs: {said}"
        if one is case:
            report.search = said
        elif report.beside is not None:
            report.beside.finding, report.beside.search = verdict.finding, said


def _words(case: Case) -> list[tuple[str, str]]:
    return [(model, claim(case.scenario, case.variant, case.setup, model)) for model in MODELS]


def _cell(claimed: str, model: str, verdict: Verdict | None, case: Case, drawn_case: Case) -> Cell:
    searched = verdict is not None and model == case.memory
    return Cell(
        memory=model,
        claimed=claimed,
        found=verdict.finding if verdict is not None and searched else "",
        confirmed=verdict is not None and searched and verdict.confirmed,
        here=model == case.memory and case is drawn_case,
        exhausted=verdict is not None and searched and verdict.ledger.exhausted,
    )
