"""What the searches cost: DPOR against a prototype, stateful search with symmetry, a machine taken apart, the first bug."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.measure import ROUNDS, against, bare_send, cpu, exhaust, in_turn, say
from racevisor.explore import cases, explore_case
from racevisor.oracles.mmu_notifier import mmu_notifier
from racevisor.oracles.programs import filesystem, indexer, lastzero, readers
from racevisor.oracles.rows import automata
from racevisor.strategies.optimal import OptimalDpor
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World

#: CPU seconds of a prototype of optimal and source-DPOR that knows nothing but these programs: hand-made generators, no memory
#: models, no labels, no traces; on a machine where a bare send took 0.08 microseconds.
PROTOTYPE: dict[Callable[[int], World], tuple[int, int, float, float]] = {
    lastzero: (10, 3_328, 0.365, 0.998),
    readers: (10, 1_024, 0.128, 0.068),
    filesystem: (18, 32, 0.050, 0.020),
    indexer: (14, 512, 0.388, 0.096),
}
SEND = 0.08e-6


def dpor() -> None:
    """Optimal and source-DPOR, in bare sends, so that the machine cancels out."""
    say(f"a bare send: {bare_send() * 1e6:.3f} microseconds")
    for make, (n, classes, by_optimal, by_source) in PROTOTYPE.items():
        for kind, prototype, bound in ((OptimalDpor, by_optimal, 1.5), (SourceDpor, by_source, None)):
            strategy = kind()

            def work(make: Callable[[int], World] = make, n: int = n, kind: type = kind) -> None:
                nonlocal strategy
                strategy = exhaust(automata(lambda: make(n)), kind())

            sends, seconds, _ = in_turn(lambda _, work=work: cpu(work), lambda _: bare_send())
            assert strategy.executions == classes
            ratio = sends / (prototype / SEND)
            words = against(bound, ratio) if bound else ""
            say(
                f"{kind.__name__}, {make.__name__}({n}): {classes:,} executions and {strategy.blocked:,} given up, "
                f"{seconds:.3f} s = {sends / 1e6:.2f} M bare sends; {ratio:.2f} times the prototype {words}".rstrip()
            )


def states() -> None:
    """The mmu-notifier protocol up to permutation of vCPUs, and a set-up of init_sipi."""
    for vcpus in (4, 6):
        strategy = StatefulSearch(symmetry=True)
        seconds = cpu(lambda strategy=strategy, vcpus=vcpus: exhaust(mmu_notifier(vcpus), strategy))
        assert strategy.exhausted
        say(
            f"stateful search with symmetry, mmu notifier protocol, {vcpus} vCPUs: exhausted, {strategy.states:,} states, "
            f"{seconds:.1f} s, {strategy.states / seconds:,.0f} states/s" + (" (bound: 60 s)" if vcpus == 6 else "")
        )
    case = cases("init_sipi", ["latch"], ["two_rounds"], ["tso"])[0]
    verdict = explore_case(case, strategy="states")
    rate = verdict.ledger.states / verdict.ledger.seconds
    say(f"stateful search, {case}: {verdict.ledger.verdict}, {verdict.ledger.states:,} states, {rate:,.0f} states/s")


def apart() -> None:
    """INIT and SIPI for 64 vCPUs."""
    case = cases("init_sipi", ["latch"], ["plain"], ["tso"], 65)[0]
    begin = time.process_time()
    ledger = explore_case(case).ledger
    say(f"decomposition, {case}: {ledger.verdict} in {time.process_time() - begin:.1f} s; {ledger.reason}")


def shell() -> None:
    """From the shell to the last line of the first interleaving, as a user waits for it."""
    for command in ("explore init_sipi --variant before", "explore init_sipi --variant before --setup plain --memory tso"):
        times = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                words = [sys.executable, "-u", "-m", "racevisor.cli", *command.split(), "--trace-dir", folder]
                with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
                    assert process.stdout is not None
                    drawn = next(line for line in process.stdout if "replay it:" in line)
                    times.append(time.perf_counter() - begin)
                    process.stdout.read()
                assert drawn
        rule = sorted(times)[ROUNDS // 2]
        say(f"racevisor {command}: drawn after {min(times):.2f} s at best, {rule:.2f} s as a rule {against(1, rule)}")
