"""`racevisor run`: rounds on real hardware, counted; the bad ones are saved.  The caller hands in what plays them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from racevisor import trace
from racevisor.commands.output import (
    Meter,
    console,
    error_line,
    print_json,
    print_paste_lines,
    print_picture,
    quiet_if,
    reenact,
)
from racevisor.commands.why import print_reason
from racevisor.errors import RacevisorError
from racevisor.explore import Witness
from racevisor.reason import Reason, Wish, readable
from racevisor.rounds import TRACES, Tally, logs_of
from racevisor.scenario import Always, Case, Never, default_setup, load, require
from racevisor.shrink import SECONDS
from racevisor.together import some

#: a longer interleaving is not drawn unless it is asked for
LONGEST_PICTURE = 2_000
#: so many outcomes are listed
ROWS = 12
#: so many of those that wait at the end of a round are named
WAITING = 4


def run_live(
    make_options: Callable[..., Any],
    make_run: Callable[..., Any],
    *,
    name: str,
    variant: str | None,
    setup: str | None,
    memory: str,
    vcpus: int | None = None,
    rounds: int,
    seed: int,
    noise: float,
    address: str | None,
    placement: str,
    hosts: int | None,
    vms: int,
    transport: str,
    log_dir: Path | None,
    log_steps: bool,
    trace_dir: Path | None,
    full: bool,
    as_json: bool,
    no_shrink: bool = False,
    shrink_budget: float = SECONDS,
) -> int:
    """Returns the exit status."""
    wish = Wish(not no_shrink, shrink_budget)
    with quiet_if(as_json):
        scenario, source = load(name)
        variant = require("variant", variant or next(iter(scenario.variants)), scenario.variants, scenario.name)
        setup = setup or default_setup(scenario, variant, memory)
        case = Case(scenario, source, variant, setup, memory, vcpus)
        log_dir = log_dir or logs_of(case, trace_dir)
        options = make_options(
            rounds=rounds,
            seed=seed,
            noise=noise,
            address=address,
            log_dir=log_dir,
            debug_steps=log_steps,
            placement=placement,
            hosts=hosts,
            vms=vms,
            transport=transport,
        )
        tally = Tally(case, seed, trace_dir, log_dir)
        play(make_run(case, options), tally, rounds)
    seconds = tally.seconds
    if as_json:
        print_json(tally_json(tally, seconds))
    elif tally.rounds or tally.problem is None:
        print_results(console(), tally, seconds, full, wish)
    for problem in (tally.problem, tally.unsaved):
        if problem is not None:
            error_line(str(problem))
    return tally.exit_status


def play(
    live: Any, tally: Tally, rounds: int | None, *, after: Callable[[Any], None] = lambda played: None, plain: float | None = None
) -> None:
    """Play until done, until Ctrl-C, or until the cluster fails; the tally keeps what was played.

    `rounds` is how many there will be, if that is known; `after` is called with each; `plain` is how often, in seconds, a line of
    progress goes to a standard error that is no terminal.
    """
    try:
        with Meter(f"{tally.case} on Ray", rounds, "rounds", plain) as meter, live:
            before, messages = tally.rounds, tally.messages
            for played in tally.rounds_of(live):
                after(played)
                hosts = f"{live.alive} hosts" if live.alive > 1 else "1 host"
                lost = f", {tally.aborted_rounds} rounds aborted" if tally.aborted else ""
                meter.update(tally.rounds - before, tally.messages - messages, f"{tally.bad} bad, {hosts} alive{lost}")
    except KeyboardInterrupt:
        tally.interrupted = True
    except RacevisorError as error:
        tally.problem = error


def tally_json(tally: Tally, seconds: float) -> dict[str, Any]:
    case, problem = tally.case, tally.problem or tally.unsaved
    return {
        "scenario": case.scenario.name,
        "variant": case.variant_name,
        "setup": case.setup,
        "memory": case.memory,
        "vcpus": case.vcpus,
        "claimed": case.claimed,
        "as_claimed": tally.as_claimed,
        "run": tally.run_id,
        "placement": tally.placement,
        "log_dir": str(tally.log_dir),
        "rounds": tally.rounds,
        "bad": tally.bad,
        "stuck": tally.stuck,
        "aborted": tally.aborted_rounds,
        "losses": [_loss_json(gone) for gone in tally.aborted],
        "messages": tally.messages,
        "crossed": tally.crossed,
        "outcomes": dict(tally.outcomes.most_common()),
        "traces": [str(path) for path in tally.traces],
        "seconds": round(seconds, 3),
        "rate": round(tally.rounds / seconds, 1) if seconds else 0.0,
        "interrupted": tally.interrupted,
        **({"error": str(problem)} if problem else {}),
    }


def print_results(out: Console, tally: Tally, seconds: float, full: bool, wish: Wish) -> None:
    case = tally.case
    ended = f" (interrupted after {tally.rounds} rounds)" if tally.interrupted else ""
    rate = f", {tally.rounds / seconds:,.1f} rounds/s" if tally.rounds and seconds else ""
    out.print(Text(f"{case}, live: {tally.rounds} rounds in {seconds:.1f} s{rate}{ended}", style="bold"), soft_wrap=True)
    if tally.placement:
        out.print(
            Text(f"{tally.placement}; {tally.messages:,} messages, {tally.crossed:,} of them between processes", style="dim")
        )
    for gone in tally.aborted:
        out.print(Text(_loss(gone), style="yellow"), soft_wrap=True)
    if not tally.rounds:
        return
    out.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("rounds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("outcome")
    table.add_column("")
    rows = tally.outcomes.most_common()
    shown = rows if full or len(rows) <= ROWS else rows[: ROWS - 1]
    for outcome, count in shown:
        bad = tally.bad_outcomes[outcome]
        mark = "" if not bad else "bad" if bad == count else f"{bad} of them bad"
        style = "bold red" if bad == count else ""
        table.add_row(str(count), f"{100 * count / tally.rounds:.1f}%", Text(outcome, style=style), Text(mark, style="bold red"))
    rest = rows[len(shown) :]
    if rest:
        count, bad = sum(n for _, n in rest), sum(tally.bad_outcomes[outcome] for outcome, _ in rest)
        words = f"{len(rest)} more outcomes (--full lists them)"
        table.add_row(str(count), f"{100 * count / tally.rounds:.1f}%", words, Text(f"{bad} of them bad", style="bold red"))
    out.print(table)
    out.print()
    out.print(Text(_sentence(tally), style="green" if tally.as_claimed else "bold red"))
    if tally.first_bad is None:
        return
    out.print()
    out.print(Text(f"round {tally.first_number}, the first bad one, {len(tally.first_bad.picks)} steps:", style="bold"))
    if tally.waiting:
        out.print(Text(f"at its end, {some(tally.waiting, WAITING).replace(': ', ' waits at ')}", style="dim"), soft_wrap=True)
    out.print()
    first = tally.first_bad
    if wish.shrink:
        told = readable(case, Witness(first.picks, first.violations, first.outcome, first.status, tally.first_number), wish)
        if told.case is not case:
            out.print(Text(f"the same check fails with {told.case.vcpus} vCPUs; that is drawn:", style="bold"), soft_wrap=True)
            out.print()
        if told.shrunk is not None or full or len(first.picks) <= LONGEST_PICTURE:
            print_reason(out, told, full=full)
            _save_shrunk(tally, told)
        else:
            out.print(f"  too long for a picture (--full prints it); {first.outcome}")
    elif full or len(first.picks) <= LONGEST_PICTURE:
        print_picture(out, case, *reenact(case, first.picks, past_violations=True), full=full)
    else:
        out.print(f"  too long for a picture (--full prints it); {first.outcome}")
    print_paste_lines(out, case, tally.traces[0] if tally.traces else None)
    if len(tally.traces) > 1:
        more = f" (the first {TRACES} bad rounds)" if tally.bad > len(tally.traces) else ""
        out.print(f"  {len(tally.traces)} traces in {tally.folder}/{more}", soft_wrap=True)


def _loss(gone: Any) -> str:
    """A host that was lost, in a line: whether another one took its place, and what became of what had been said."""
    numbers = ", ".join(str(number) for number in gone.numbers)
    account = f"; {gone.account}" if gone.account is not None else ""
    return f"lost{' and replaced' if gone.replaced else ''}: {gone.host}; aborted: round {numbers}{account} ({gone.why})"


def _loss_json(gone: Any) -> dict[str, Any]:
    account = gone.account
    amounts = {} if account is None else {"parts": account.parts._asdict(), "messages": account.messages._asdict()}
    return {"host": gone.host, "rounds": list(gone.numbers), "replaced": gone.replaced, "why": gone.why, **amounts}


def _save_shrunk(tally: Tally, told: Reason) -> None:
    """Beside the round that was played: a trace of the World, which replays and explains like any other."""
    if told.shrunk is None or not tally.traces:
        return
    recorded = trace.of(told.case, told.witness, seed=tally.seed, strategy="live, shrunk", recorded_by=trace.EXPLORE)
    try:
        trace.save(recorded, tally.traces[0].with_name(f"{tally.traces[0].stem}-shrunk.trace"))
    except RacevisorError as error:
        tally.unsaved = tally.unsaved or error


def _sentence(tally: Tally) -> str:
    """What the rounds say about the claim, and no more than they say."""
    claimed, bad, rounds = tally.case.claimed, tally.bad, tally.rounds
    count = f"{bad} of {rounds} rounds bad"
    if claimed == Never:
        if bad:
            return f"{count}, claimed Never: refuted."
        return "No round was bad, as claimed (Never).  Rounds prove nothing: racevisor explore decides."
    if claimed == Always:
        return f"{count}, claimed Always: {'as claimed so far.' if tally.as_claimed else 'refuted.'}"
    if not bad:
        return "No round was bad.  That does not refute the claim (Sometimes): more --rounds, more --noise, or racevisor explore."
    return f"{count}, as claimed (Sometimes)."
