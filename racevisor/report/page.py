"""The page: one file, no network, readable without JavaScript as far as the story goes.

All that comes from a trace or a scenario is text to us: it is escaped where it stands in HTML, and embedded as JSON data that
the script reads.  A content security policy lets exactly our own script and style run, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from racevisor import __version__
from racevisor.picture import DIM, HEADING
from racevisor.report.beside import Beside
from racevisor.report.encode import embedded, encoded
from racevisor.report.rounds import Rounds
from racevisor.report.story import Row, Story
from racevisor.report.whole import FIXED, GOOD, Claims, Report

_SCRIPTS = ("data.js", "lanes.js", "paint.js", "panel.js", "table.js", "main.js")
#: stories with more columns than this are put one below the other
BESIDE = 2
#: of more outcomes, the rarest are counted as one bar
_BARS = 12


def page(report: Report) -> str:
    """The whole HTML text."""
    script = "\n".join(_static(name) for name in _SCRIPTS)
    script = f'(function () {{\n"use strict";\n{script}\n}})();'
    style = _static("page.css")
    return Template(_static("page.html")).substitute(
        csp=escape(
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        title=escape(report.title),
        heading=_heading(report.title),
        style=style,
        script=script,
        data=embedded(encoded(report.runs, report.functions)),
        broken=_broken(report),
        about=_pairs(report.about),
        facts=_pairs(report.facts),
        stories="".join(_story(one) for one in report.stories),
        story_class=_together(report.stories),
        shrunk=f'<p class="quiet">{escape(report.shrunk)}</p>' if report.shrunk else "",
        why=_why(report),
        claims=_claims(report),
        rounds="".join(_rounds(one) for one in report.rounds),
        traces=_traces(report),
        commands=_commands(report),
        version=escape(__version__),
        no_runs="" if report.runs else " hidden",
        no_story="" if report.stories else " hidden",
    )


def _static(name: str) -> str:
    return files("racevisor.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _heading(title: str) -> str:
    name, _, rest = title.partition(" ")
    return f"{escape(name)} <small>{escape(rest)}</small>" if rest else escape(name)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)


def _broken(report: Report) -> str:
    if not report.broken:
        if not report.runs:
            return ""
        return f'<div class="judged good"><p>Nothing is wrong in this run.</p>{_ending(report)}</div>'
    first, more = report.broken[0], len(report.broken) - 1
    rest = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.broken[1:])
    also = f"<details><summary>{more:,} more of this run</summary><ul>{rest}</ul></details>" if more else ""
    told = f'<div class="judged bad"><p>{escape(first)}</p>{_ending(report)}{also}</div>'
    return told if report.beside is None else f'<div class="both">{told}{_beside(report.beside)}</div>'


def _beside(other: Beside) -> str:
    """What the other variant does instead."""
    word, sign = ("goes wrong as well", "bad") if other.bad else ("ends well", "good")
    ends = _told("ends with", other.outcome) + _told("search", other.search)
    return f'<div class="judged {sign}"><p>With <b>{escape(other.variant)}</b> the same schedule {word}.</p>{ends}</div>'


def _ending(report: Report) -> str:
    return _told("ends with", report.outcome) + _told("search", report.search)


def _told(name: str, text: str) -> str:
    return f'<p class="ends">{name}: {escape(text)}</p>' if text else ""


def _table(heads: Sequence[tuple[str, str]], rows: str, kind: str, caption: str = "") -> str:
    """A table that scrolls by itself; `heads` are class and text of each column."""
    cells = "".join(f'<th scope="col" class="{name}">{text}</th>' for name, text in heads)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{cells}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{told}{head}<tbody>{rows}</tbody></table></div>'


# ---- the story ------------------------------------------------------------------------------------------------------------


def _story(one: Story) -> str:
    heads = [("n", "step"), *(("", escape(name)) for name in one.columns or ["what happens"])]
    rows = "".join(_row(row, one.key, len(heads) - 1, bool(one.columns)) for row in one.rows)
    below = "".join(f"<p>{escape(text)}</p>" for text in one.below)
    good = {GOOD: " good", FIXED: " good fix"}.get(one.key, "")
    caption = f"<figcaption>{escape(one.title)}</figcaption>"
    return f'<figure class="story{good}">{caption}{_table(heads, rows, "interleaving")}{below}</figure>'


def _together(stories: Sequence[Story]) -> str:
    """Two of few columns stand side by side."""
    if len(stories) < 2:
        return "single"
    return "pair" if all(0 < len(one.columns) <= BESIDE for one in stories) else "stack"


def _row(row: Row, key: str, wide: int, columns: bool) -> str:
    number = "" if row.step is None else f'<a href="#run={key}&amp;step={row.step}">{row.step}</a>'
    cells = [*row.cells, *[("", "")] * (wide - len(row.cells))]
    tag = "td" if columns else 'td class="whole"'
    told = "".join(f"<{tag}>{_styled(text, style) if columns else escape(text)}</td>" for text, style in cells)
    mark = ' class="mark"' if row.marked else ""
    return f'<tr{mark}><td class="n">{number}</td>{told}</tr>'


def _styled(text: str, style: str) -> str:
    """A step hangs below the function that it is in; what is folded, and the function's name, do not."""
    if not text.strip():
        return ""
    kind = style if style in (HEADING, DIM) else f"does {style}".rstrip()
    return f'<span class="{kind}">{escape(text.strip())}</span>'


def _why(report: Report) -> str:
    if not report.why:
        return ""
    more = ""
    if len(report.more) > len(report.why) + 1:
        more = f"<details><summary>All that is known of it</summary><pre>{escape(chr(10).join(report.more))}</pre></details>"
    return f'<h3>Why</h3><pre class="why">{escape(chr(10).join(line[2:] for line in report.why))}</pre>{more}'


# ---- verdicts, rounds, commands -------------------------------------------------------------------------------------------


def _claims(report: Report) -> str:
    if not report.claims:
        return ""
    heads = [("", "variant"), *(("", escape(cell.memory)) for cell in report.claims[0].cells), ("said", "what it is")]
    rows = "".join(_claim(row) for row in report.claims)
    ledgers = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in report.ledgers)
    ledger = f'<h3>Ledger</h3><dl class="ledger">{ledgers}</dl>' if ledgers else ""
    asked = f"Is the bad outcome reached in set-up {report.setup}?  What is claimed, by memory model; what a search has found."
    return f'<section id="claims"><h2>Verdicts</h2>{_table(heads, rows, "claims", asked)}{ledger}</section>'


def _claim(row: Claims) -> str:
    cells = ""
    for cell in row.cells:
        found = ""
        if cell.found:
            sign, word = ("good", "confirmed") if cell.confirmed else ("bad", cell.found)
            found = f'<span class="{sign}">searched: {escape(word)}{", exhausted" * cell.exhausted}</span>'
        here = ' class="here"' if cell.here else ""
        cells += f'<td{here}><b class="word {escape(cell.claimed.lower())}">{escape(cell.claimed)}</b>{found}</td>'
    return f'<tr><th scope="row">{escape(row.variant)}</th>{cells}<td class="said">{escape(row.about)}</td></tr>'


def _rounds(one: Rounds) -> str:
    rows = one.outcomes.most_common()
    shown = rows if len(rows) <= _BARS else rows[: _BARS - 1]
    bars = [(outcome, count, one.bad_outcomes[outcome]) for outcome, count in shown]
    rest = rows[len(shown) :]
    if rest:
        names = f"{len(rest):,} more outcomes"
        bars.append((names, sum(count for _, count in rest), sum(one.bad_outcomes[outcome] for outcome, _ in rest)))
    most = max((count for _, count, _ in bars), default=1)
    facts = [
        f"{one.rounds:,} rounds",
        f"{one.bad:,} bad",
        *([f"{one.stuck:,} stuck"] if one.stuck else []),
        *([f"{one.aborted:,} aborted"] if one.aborted else []),
        f"{one.messages:,} messages",
        f"{one.seconds:,.1f} s",
        *([f"{len(one.runs):,} runs"] if len(one.runs) > 1 else []),
    ]
    heads = [("n", "rounds"), ("n", "share"), ("", '<span class="unseen">bar</span>'), ("", "outcome")]
    told = "".join(_bar(outcome, count, bad, one.rounds, most) for outcome, count, bad in bars)
    title = f"<h2>Outcomes <small>{escape(one.case)}, live</small></h2>"
    return f'<section class="rounds">{title}<p>{escape(", ".join(facts))}</p>{_table(heads, told, "bars")}</section>'


def _bar(outcome: str, count: int, bad: int, rounds: int, most: int) -> str:
    wide, red = 160 * count / most, 160 * bad / most
    mark = "" if not bad else "bad" if bad == count else f"{bad:,} of them bad"
    badge = f' <b class="badge">{mark}</b>' if mark else ""
    bar = f'<rect class="all" width="{wide:.1f}" height="12"/><rect class="red" width="{red:.1f}" height="12"/>'
    return (
        f'<tr><td class="n">{count:,}</td><td class="n">{100 * count / max(rounds, 1):.1f}%</td>'
        f'<td><svg width="160" height="12" aria-hidden="true">{bar}</svg></td><td>{escape(outcome)}{badge}</td></tr>'
    )


def _traces(report: Report) -> str:
    if not report.traces:
        return ""
    heads = [("", "file"), ("n", "steps"), ("", "end"), ("", "outcome")]
    rows = "".join(
        f'<tr class="{"mark" if one.name == report.drawn_trace else ""}"><td>{escape(one.name)}</td>'
        f'<td class="n">{one.steps:,}</td><td>{"bad" if one.bad else "good"}</td><td>{escape(one.outcome)}</td></tr>'
        for one in report.traces
    )
    return f'<section id="traces"><h2>Traces</h2>{_table(heads, rows, "files", "The marked one is drawn above.")}</section>'


def _commands(report: Report) -> str:
    told = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(line)}</code></dd>" for name, line in report.commands)
    return f'<section id="again"><h2>Again</h2><dl class="commands">{told}</dl></section>' if told else ""
