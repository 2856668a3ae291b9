"""A search shared out on Ray: executions per second of one worker and of two, and what the sharing costs."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import ray

from benchmarks.measure import against, say
from cluster.search import Crew
from cluster.session import Session
from racevisor.choose import Wanted
from racevisor.explore import cases
from racevisor.share.search import Sharing

#: half a minute and more for one worker: 59,404 traces
CELL = ("init_sipi", ("seed",), ("stale_sipi",), ("sc",))
PAIRS = 3
CALLS = 300
#: two workers are to be so many times as fast as one
FASTER = 1.7


class Searched(NamedTuple):
    """One search: executions per second of wall-clock, and per CPU second of the workers."""

    certificate: str
    rate: float
    per_cpu: float
    seconds: float
    pieces: int
    driver: float  # CPU seconds of the driver's process


def searched(workers: int) -> Searched:
    """The whole search, on Ray that runs already."""
    sharing = Sharing(cases(*CELL), Wanted(strategy="optimal", to_the_end=True), workers)
    with Crew(sharing) as crew:
        for hand in crew.hands:
            ray.get(hand.beat.remote())  # it takes Ray half a second to start a process
        began, driver = time.perf_counter(), time.process_time()
        crew.run()
        seconds, driver = time.perf_counter() - began, time.process_time() - driver
        ((_, verdict),) = sharing.verdicts()
        rate = verdict.executions / seconds
        per_cpu = verdict.executions / crew.cpu_seconds
        return Searched(verdict.ledger.certificate, rate, per_cpu, seconds, crew.pieces, driver)


def call() -> float:
    """Seconds from a call of a worker that does nothing to its answer: what a piece costs besides its work."""
    sharing = Sharing(cases(*CELL), Wanted(strategy="optimal"), 1)
    with Crew(sharing) as crew:
        (hand,) = crew.hands
        ray.get(hand.beat.remote())
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            ray.get(hand.beat.remote())
            times.append(time.perf_counter() - began)
    sharing.close()
    return statistics.median(times)


def main() -> None:
    """In pairs, so that a machine that is slow is slow for both."""
    session = Session()
    session.open()
    try:
        once = call()
        pairs = [(searched(1), searched(2)) for _ in range(PAIRS)]
    finally:
        session.close()
    assert len({run.certificate for pair in pairs for run in pair}) == 1
    for workers, runs in ((1, [one for one, _ in pairs]), (2, [two for _, two in pairs])):
        rate, per_cpu, seconds = (
            statistics.median(getattr(run, what) for run in runs) for what in ("rate", "per_cpu", "seconds")
        )
        share = statistics.median(run.driver / run.seconds for run in runs)
        each = statistics.median(run.seconds * workers / run.pieces for run in runs)
        say(
            f"{workers} worker{'s' if workers > 1 else ' '}: {rate:,.0f} executions/s in {seconds:.0f} s, "
            f"{per_cpu:,.0f} a CPU second; {runs[0].pieces} pieces of {each:.2f} s; driver {share:.1%} of a CPU"
        )
    faster = statistics.median(two.rate / one.rate for one, two in pairs)
    lost = statistics.median(one.per_cpu / two.per_cpu for one, two in pairs)
    say(
        f"two workers: {faster:.2f} times one (wanted: {FASTER}), with {lost:.2f} times the CPU an execution {against(1.2, lost)}"
    )
    say(f"a call of Ray and back: {once * 1e3:.2f} ms; certificate {pairs[0][0].certificate}")
