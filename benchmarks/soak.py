"""Rounds of a big machine for minutes, with the memory of every process looked at: does anything grow, does any message get lost?

    python -m benchmarks soak --minutes 10 --vcpus 256 --kills 5

Memory is what a process has for itself (USS) and what it has in all (RSS).  The first quarter of its life is the warm-up; after
it the median of the last quarter may be at most 2 % or 2 MB above that of the second.  A process that took another's place is
another one.  A message is accounted for if, when its round ends, its receiver has counted what its sender has, by pairs of hosts;
or, where the loss of a host has aborted the round, if it was in flight between two that are left, or was sent to the lost one.
And the World repeats every round.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import say
from cluster.accounts import Amounts
from cluster.conductor import Conductor
from cluster.live import LiveOptions, LiveRun
from racevisor.rounds import Tally
from racevisor.scenario import Case, load

MB = 2**20
SHARE, LEAST = 0.02, 2 * MB
#: Pairs that the slope is taken from, at most so many samples.
SAMPLES = 200
#: Looks that it takes to say whether the pace of the whole falls, or a process grows that was there from the first to the last;
#: and those that it takes where a process has begun, or was killed, in between.
LOOKS, ENOUGH = 8, 40


def slope(samples: list[tuple[float, float]]) -> float:
    """Theil and Sen: the median of the slopes of all pairs; outliers do not move it."""
    thin = samples[:: len(samples) // SAMPLES + 1]
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(thin) for b in thin[i + 1 :] if b[0] > a[0]]
    return statistics.median(pairs) if pairs else 0.0


class Ledger:
    """Parts that hosts have sent to and got from each other in all rounds: in finished ones as they counted them."""

    def __init__(self, run: LiveRun, conductor: Conductor) -> None:
        self.run = run
        self.finished = Amounts()
        self.unequal: list[int] = []
        self._ended: dict[int, Amounts] = {}  # rounds whose reports are on their way: some may be aborted yet
        collect = conductor.collect

        def look(vm: int, number: int) -> None:
            counts = conductor.plays[vm].counts
            hosts = range(conductor.hosts)
            sent = [counts.sent[i][j] for i in hosts for j in hosts if i != j]
            received = [counts.received[j][i] for i in hosts for j in hosts if i != j]
            self._ended[number] = Amounts(sum(sent), sum(received))
            if sent != received:
                self.unequal.append(number)
            collect(vm, number)

        conductor.collect = look  # type: ignore[method-assign]

    def add(self, number: int) -> None:
        """That round is finished."""
        self.finished = self.finished.plus(self._ended.pop(number))

    def close(self) -> bool:
        """Print what became of all that was sent; is it all there?"""
        parts = self.finished
        say(f"  finished rounds: parts sent {parts.sent:,}, received {parts.delivered:,}{_lost(self.unequal)}")
        aborted, unknown = Amounts(), list[int]()
        for gone in self.run.aborted:
            if gone.account is None:
                unknown += gone.numbers
            else:
                aborted = aborted.plus(gone.account.parts)
        if self.run.aborted:
            say(
                f"  aborted rounds: parts sent {aborted.sent:,}, received {aborted.delivered:,}, in flight {aborted.in_flight:,},"
                f" to lost hosts {aborted.lost:,}{_lost(unknown)}; got from lost hosts {aborted.from_lost:,}"
            )
        total = parts.plus(aborted)
        whole = total.sent == total.delivered + total.in_flight + total.lost and not self.unequal and not unknown
        say(
            f"  in all: {total.sent:,} sent {'=' if whole else 'IS NOT'} {total.delivered:,} received"
            f" + {total.in_flight:,} in flight + {total.lost:,} lost with a host"
        )
        return whole


def _lost(rounds: list[int]) -> str:
    return f"  NOT ACCOUNTED FOR in {rounds[:9]}" if rounds else ""


class Killer(threading.Thread):
    """Kills a host now and then, one after the other, whatever it does: `times` in `seconds`, evenly."""

    def __init__(self, run: LiveRun, times: int, seconds: float) -> None:
        super().__init__(name="killer", daemon=True)
        self.live = run
        self.times = times
        self.pause = seconds / (times + 1)
        self.over = threading.Event()
        self.killed: list[int] = []

    def run(self) -> None:
        """Until all kills are done, or `over`."""
        while len(self.killed) < self.times and not self.over.wait(self.pause):
            pids = list(self.live.pids.values())
            self.killed.append(pids[len(self.killed) % len(pids)])
            with suppress(ProcessLookupError):
                os.kill(self.killed[-1], signal.SIGKILL)


def watch(seen: dict[tuple[str, int], list[tuple[float, float, float]]], pids: dict[str, int], begun: float) -> None:
    """One sample of every process: (seconds, USS, RSS)."""
    import psutil  # type: ignore[import-untyped, import-not-found, unused-ignore]  # Ray's own

    for name, pid in {"driver": os.getpid(), **pids}.items():
        with suppress(psutil.Error):  # it was killed, and is not replaced yet
            memory = psutil.Process(pid).memory_full_info()
            seen.setdefault((name, pid), []).append((time.perf_counter() - begun, memory.uss, memory.rss))


def verdict(name: str, samples: list[tuple[float, float, float]]) -> bool:
    """Print how the memory of a process went; is it flat?"""
    n = len(samples)
    flat = True
    for kind, at in (("USS", 1), ("RSS", 2)):
        values = [sample[at] for sample in samples]
        early, late = statistics.median(values[n // 4 : n // 2]), statistics.median(values[3 * n // 4 :])
        grown = late - early
        rate = slope([(sample[0], sample[at]) for sample in samples[n // 4 :]]) * 60
        well = grown <= max(LEAST, SHARE * early)
        flat = flat and well
        say(
            f"  {name:8} {kind} {values[0] / MB:7.1f} MB at first, {early / MB:7.1f} in the second quarter,"
            f" {late / MB:7.1f} in the last: {grown / MB:+.2f} MB, slope {rate / MB:+.3f} MB/min{'' if well else '  GROWS'}"
        )
    return flat


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 if something grew or got lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--vcpus", type=int, default=256)
    parser.add_argument("--hosts", type=int)
    parser.add_argument("--vms", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILL to a host, N times, evenly over the time")
    parser.add_argument("--transport", choices=["sockets", "ray"], default="sockets")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    asked = parser.parse_args(arguments)
    scenario, source = load("init_sipi")
    case = Case(scenario, source, "latch", "plain", "tso", min(asked.vcpus, scenario.max_vcpus))
    seen: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    paces: list[tuple[float, float]] = []  # rounds a second, over time
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        where = Path(directory)
        options = LiveOptions(
            rounds=2**53, duration=asked.minutes * 60, placement="packed", hosts=asked.hosts, vms=asked.vms, log_dir=where,
            bounded_log=True, transport=asked.transport,
        )  # fmt: skip
        tally = Tally(case, 0, where, where)
        with LiveRun(case, options) as run:
            assert run.hosts is not None and run.hosts.conductor is not None
            ledger = Ledger(run, run.hosts.conductor)
            killer = Killer(run, asked.kills, asked.minutes * 60)
            say(f"{case}, {run.plan}")
            begun = looked = time.perf_counter()
            before = 0
            killer.start()
            for played in run.rounds():
                ledger.add(played.number)
                tally.add(played)
                now = time.perf_counter()
                if now - looked >= asked.every:
                    paces.append((now - begun, (tally.rounds - before) / (now - looked)))
                    looked, before = now, tally.rounds
                    watch(seen, run.pids, begun)
            killer.over.set()
            seconds = time.perf_counter() - begun
    tally.aborted = run.aborted
    say(
        f"{tally.rounds} rounds in {seconds:.0f} s, {tally.rounds / seconds:.2f} rounds/s, {tally.messages:,} messages, "
        f"{tally.crossed:,} of them between processes, {tally.bad} bad, "
        f"{tally.aborted_rounds} aborted by {len(killer.killed)} kills"
    )
    for gone in run.aborted:
        say(f"  {gone.host} lost, rounds {', '.join(map(str, gone.numbers))}: {gone.account}")
    whole = ledger.close()
    if len(paces) < LOOKS:
        say("  too short to say whether anything grows")
        return 1
    flat = []
    for (name, pid), samples in seen.items():
        if len(samples) >= (LOOKS if len(samples) == len(paces) else ENOUGH):
            flat.append(verdict(name, samples))
        else:
            say(f"  {name:8} process {pid}: {len(samples)} looks, too few to say whether it grows")
    say(f"  pace     slope {slope(paces[len(paces) // 4 :]) * 60:+.3f} rounds/s per minute")
    return 0 if whole and all(flat) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
