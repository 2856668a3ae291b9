"""Verdicts: as plain data, and made from what a pool has collected."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from racevisor import choose
from racevisor.budget import words
from racevisor.estimate import Estimate
from racevisor.explore import Verdict
from racevisor.ledger import Bounds, Ledger, judge
from racevisor.scenario import Always, Never, Sometimes
from racevisor.strategies.pct import Guarantee
from racevisor.tally import Witness

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case
    from racevisor.share.protocol import Pool

_NAMES = ("scenario", "variant", "setup", "memory", "claimed", "found", "outcomes", "vcpus")


def plain(verdict: Verdict) -> dict[str, Any]:
    """As plain data."""
    ledger: dict[str, Any] = {name: getattr(verdict.ledger, name) for name in verdict.ledger.__dataclass_fields__}
    ledger["bounds"] = asdict(verdict.ledger.bounds)
    for name in ("remains", "guarantee"):
        ledger[name] = None if ledger[name] is None else asdict(ledger[name])
    shown = {name: getattr(verdict, name) for name in ("witness", "good")}
    return {
        **{name: getattr(verdict, name) for name in _NAMES},
        **{name: None if one is None else one.plain() for name, one in shown.items()},
        "ledger": ledger,
        "calls": sorted(verdict.calls),
    }


def verdict_of(told: dict[str, Any]) -> Verdict:
    """From plain data."""
    ledger = dict(told["ledger"])
    ledger["bounds"] = Bounds(**ledger["bounds"])
    ledger["remains"] = None if ledger["remains"] is None else Estimate(**ledger["remains"])
    ledger["guarantee"] = None if ledger["guarantee"] is None else Guarantee(**ledger["guarantee"])
    shown: dict[str, Any] = {name: told[name] and Witness.of(told[name]) for name in ("witness", "good")}
    return Verdict(
        **{name: told[name] for name in _NAMES}, **shown, ledger=Ledger(**ledger), calls=frozenset(told["calls"])
    )  # fmt: skip


def verdict_from(
    case: Case, wanted: Wanted, pool: Pool, *, seconds: float, workers: int, settled: bool, stopped: str, by_clock: bool
) -> Verdict:
    """What a pool has to say after so many seconds; `stopped` says what ended it before it was done, "" if nothing did."""
    kind = choose.kind(wanted)
    tally = pool.tally
    facts = pool.facts()
    exhausted = pool.exhausted and not settled
    steps = wanted.max_steps or case.max_steps
    verdict, reason = judge(
        exhausted=exhausted, complete=tally.complete, settled=settled, stopped=stopped, cut=tally.cut,
        limit=facts.pop("limit", ""), steps=steps, covers=facts.pop("covers", kind.covers), runs=tally.runs,
    )  # fmt: skip
    certificate = pool.certificate() if not (settled or stopped) else None
    ledger = Ledger(
        strategy=facts.pop("strategy", wanted.strategy),
        memory=case.memory,
        verdict=verdict,
        reason=reason,
        bounds=Bounds(steps, choose.run_bound(wanted), choose.seconds(wanted)),
        executions=tally.complete,
        bad=tally.bad,
        cut=tally.cut,
        states=pool.states,
        seconds=seconds,
        remains=pool.estimate(seconds) if stopped or settled else None,
        by_clock=by_clock,
        workers=workers,
        certificate="" if certificate is None else str(certificate[0]),
        certified="" if certificate is None else certificate[1],
        **{"blocked": 0, "classes": None, **facts},
    )
    found = Never if not tally.bad else Always if ledger.exhausted and tally.good is None else Sometimes
    calls = frozenset(getattr(pool, "calls", ()))
    return Verdict(
        case.scenario.name, case.variant_name, case.setup, case.memory, case.claimed, found, ledger,
        tally.outcomes, tally.worst, tally.good, calls, case.vcpus,
    )  # fmt: skip


def spent(seconds: float, executions: int, *, by_clock: bool) -> str:
    """What of a budget was spent, in words."""
    return words(seconds) if by_clock else f"{executions:,} executions"
