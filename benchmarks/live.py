"""Live runs on an embedded Ray: messages against plain Ray calls, what recording costs, size, start, memory, where the time goes.

Ratios are of two things measured in turn in one run.  Messages are those between simulated actors: an access to a cell of another
actor is two of them, a request and its answer, in one process too; `crossed` are those that left a process.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray

from benchmarks.measure import ROUNDS, against, say
from cluster.conductor import Finished
from cluster.live import LiveOptions, LiveRun, Round, unjudged
from cluster.session import Session
from racevisor.scenario import Case, default_setup, load

#: it comes with Ray, and is found once that is imported
psutil: Any = importlib.import_module("psutil")

NEIGHBOURS = str(Path(__file__).resolve().parent / "neighbours.py")
#: how many Ray calls one sample of the plain ones has
CALLS = 3_000
#: seconds that a sample of rounds lasts, about
SAMPLE = 1.2


def at_least(bound: float, ratio: float) -> str:
    """The words for a ratio and the least that it may be."""
    return f"(at least: {bound:g}{'' if ratio >= bound else ', missed'})"


def case_of(name: str, vcpus: int, variant: str | None = None, memory: str = "tso") -> Case:
    scenario, source = load(name)
    variant = variant or next(iter(scenario.variants))
    return Case(scenario, source, variant, default_setup(scenario, variant, memory), memory, vcpus)


# ---- what is measured ---------------------------------------------------------------------------------------------------------


class Callee:
    """Counts calls."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, _words: tuple[int, ...]) -> None:
        self.calls += 1

    def done(self) -> int:
        return self.calls


class Caller:
    """Calls another actor and does not wait."""

    def run(self, callee: Any, calls: int) -> float:
        """Calls per second, from the first until the last has been executed."""
        words = (0x11, 17, 1234, 3, 1, 0)
        call = callee.call.remote
        begin = time.perf_counter()
        for _ in range(calls):
            call(words)
        ray.get(callee.done.remote())
        return calls / (time.perf_counter() - begin)


@contextmanager
def plain_calls() -> Iterator[Callable[[], float]]:
    """What measures `actor.method.remote()` between two Ray actors, fire and forget, in calls per second."""
    remote: Any = ray.remote
    caller, callee = (remote(kind).options(num_cpus=0).remote() for kind in (Caller, Callee))
    ray.get(caller.run.remote(callee, CALLS // 10))
    yield lambda: float(ray.get(caller.run.remote(callee, CALLS)))
    for actor in (caller, callee):
        ray.kill(actor)


class Sample(NamedTuple):
    """Some rounds: seconds until all were judged, messages, and how many of them crossed."""

    rounds: int
    seconds: float
    messages: int
    crossed: int
    each: list[float]  # seconds
    cpu: float  # seconds of the hosts, their sockets included

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


class Measured(LiveRun):
    """A live run that measures itself.  `judging` False: steps are recorded and come home, but nobody looks at them."""

    def __init__(self, case: Case, judging: bool = True, **options: Any) -> None:
        super().__init__(case, LiveOptions(rounds=1, **options))
        self.judging = judging
        self.judged = 0.0  # CPU seconds
        self.per_sample = 0

    def _judge(self, done: Finished) -> Round:
        begin = time.process_time()
        played = super()._judge(done) if self.judging else unjudged(done)
        self.judged += time.process_time() - begin
        return played

    def play(self, rounds: int) -> Sample:
        """So many rounds, each number once."""
        self.options.rounds = rounds
        cpu = self.host_seconds()
        begin = time.perf_counter()
        played = [(r.messages, r.crossed, r.seconds) for r in self.rounds()]
        seconds = time.perf_counter() - begin
        self.options.first += rounds
        cpu = self.host_seconds() - cpu
        return Sample(rounds, seconds, sum(m for m, _, _ in played), sum(c for _, c, _ in played), [s for _, _, s in played], cpu)

    def host_seconds(self) -> float:
        """CPU seconds that the hosts have taken so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids.values()]
        return float(sum(t.user + t.system for t in times))

    def sample(self) -> Sample:
        """Rounds for about SAMPLE seconds."""
        if not self.per_sample:
            self.play(2 * self.options.vms)  # warm
            probe = self.play(4 * self.options.vms)
            self.per_sample = max(2 * self.options.vms, round(SAMPLE / (probe.seconds / probe.rounds)))
        return self.play(self.per_sample)


def median(values: Any) -> float:
    return float(statistics.median(list(values)))


# ---- the figures --------------------------------------------------------------------------------------------------------------


def throughput() -> None:
    """Messages per second against plain Ray calls, and what recording and judging cost."""
    crowd = case_of(NEIGHBOURS, 256)
    packed: dict[str, Any] = {"placement": "packed", "hosts": 2}
    with ExitStack() as stack:
        calls = stack.enter_context(plain_calls())
        full = stack.enter_context(Measured(crowd, **packed))
        recorded = stack.enter_context(Measured(crowd, judging=False, **packed))
        bare = stack.enter_context(Measured(crowd, recording=False, **packed))
        booted = stack.enter_context(Measured(case_of("init_sipi", 250, "before"), **packed))
        rows = [(calls(), full.sample(), recorded.sample(), bare.sample()) for _ in range(ROUNDS)]
        inits = [(calls(), booted.sample()) for _ in range(3)]
    plain = median(row[0] for row in rows)
    ratio = median(row[1].rate / row[0] for row in rows)
    sample = rows[0][1]
    say(f"plain Ray calls between two actors, fire and forget: {plain:,.0f} calls/s")
    say(
        f"256 vCPUs on 2 hosts, neighbours, recorded and judged: {median(row[1].rate for row in rows):,.0f} messages/s, "
        f"{100 * sample.crossed / sample.messages:.0f}% crossed\n  {ratio:.0f} times the calls {at_least(60, ratio)}"
    )
    other = median(s.rate / c for c, s in inits)
    some = inits[0][1]
    say(
        f"250 vCPUs on 2 hosts, init_sipi, where one vCPU starts the others: {median(s.rate for _, s in inits):,.0f} messages/s, "
        f"{100 * some.crossed / some.messages:.0f}% crossed; {other:.0f} times the calls"
    )
    cost = median(1 - row[2].rate / row[3].rate for row in rows)
    say(f"recording, with what was recorded brought home: {100 * cost:.0f}% of {median(r[3].rate for r in rows):,.0f} messages/s")
    say(f"  {against(15, 100 * cost)}")
    cost = median(1 - (row[3].cpu / row[3].messages) / (row[2].cpu / row[2].messages) for row in rows)
    each = median(row[2].cpu / row[2].messages for row in rows)
    say(f"  of the hosts' CPU for a message, {each * 1e6:.1f} us, which others on this machine change less: {100 * cost:.0f}%")
    cost = median(1 - row[1].rate / row[3].rate for row in rows)
    say(f"  with judging on the driver, on the same {psutil.cpu_count()} CPUs: {100 * cost:.0f}%")


def size() -> None:
    """1,024 vCPUs against 64, and what a vCPU takes."""
    with ExitStack() as stack:
        few, many = (
            stack.enter_context(Measured(case_of(NEIGHBOURS, vcpus), placement="packed", hosts=2)) for vcpus in (64, 1024)
        )
        pairs = [(many.sample().rate, few.sample().rate) for _ in range(ROUNDS)]
    ratio = median(a / b for a, b in pairs)
    say(f"1,024 vCPUs: {median(a for a, _ in pairs):,.0f} messages/s; 64 vCPUs: {median(b for _, b in pairs):,.0f} messages/s")
    say(f"  {ratio:.2f} of the rate {at_least(0.5, ratio)}")


def own_bytes(run: LiveRun) -> int:
    """What the hosts' processes have to themselves."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in run.pids.values())


def start() -> None:
    """From the command to the first round, and memory."""
    times: dict[int, list[tuple[float, float]]] = {2: [], 256: []}
    memory: dict[tuple[str, int], list[int]] = {}
    for turn in range(4):
        for vcpus in (2, 256) if turn % 2 else (256, 2):
            for name, size in ((NEIGHBOURS, vcpus), ("init_sipi", min(vcpus, 250))):
                begin = time.perf_counter()
                with Measured(case_of(name, size), placement="packed", hosts=2) as run:
                    ready = time.perf_counter() - begin
                    run.play(1)
                    if name == NEIGHBOURS:
                        times[vcpus].append((ready, time.perf_counter() - begin))
                    memory.setdefault((name, size), []).append(own_bytes(run))
    for at, what in ((0, "its begin"), (1, "its end")):
        ratio = median(many[at] / few[at] for many, few in zip(times[256], times[2], strict=True))
        bound = against(1.5, ratio) if not at else ""
        say(
            f"from the command to the first round, {what}: 256 vCPUs {median(t[at] for t in times[256]):.2f} s, "
            f"2 vCPUs {median(t[at] for t in times[2]):.2f} s: {ratio:.2f} times {bound}".rstrip()
        )
    for name, few, many in ((NEIGHBOURS, 2, 256), ("init_sipi", 2, 250)):
        each = (median(memory[name, many]) - median(memory[name, few])) / (many - few)
        words = f"{each / 1024:.0f} KB {against(200, each / 1024)}"
        say(f"memory for each further vCPU after a round, {Path(name).stem}, both hosts: {words}")


class Spent(NamedTuple):
    """CPU seconds: of the hosts' own threads, of what moves their frames, of the driver's judging, and of the rest of it."""

    hosts: float
    frames: float
    judging: float
    driver: float
    wall: float


def spent(run: Measured, rounds: int) -> Spent:
    """What some rounds take."""
    processes = [psutil.Process(pid) for pid in run.pids.values()]

    def now() -> tuple[float, float]:
        main = frames = 0.0
        for process in processes:
            times = sorted((t.user_time + t.system_time for t in process.threads() if t.id == process.pid), reverse=True)
            whole = process.cpu_times()
            main += times[0]
            frames += whole.user + whole.system - times[0]
        return main, frames

    main, frames = now()
    own, judged = time.process_time(), run.judged
    seconds = run.play(rounds).seconds
    own, judged = time.process_time() - own, run.judged - judged
    after = now()
    return Spent(after[0] - main, after[1] - frames, judged, own - judged, seconds)


def rounds() -> None:
    """Rounds per second of init_sipi with two vCPUs, and where the time goes."""
    case = case_of("init_sipi", 2, "before")
    ways: list[tuple[str, dict[str, Any]]] = [("dedicated", {"placement": "dedicated"})]
    ways += [(f"packed, {vms} VM{'s' if vms > 1 else ''}", {"placement": "packed", "hosts": 2, "vms": vms}) for vms in (1, 4, 16)]
    for words, options in ways:
        with Measured(case, **options) as run:
            run.sample()
            number = 3 * run.per_sample
            asked = run.hosts.conductor.asked  # type: ignore[union-attr]
            took = spent(run, number)
            asked = run.hosts.conductor.asked - asked  # type: ignore[union-attr]
            each = Spent(*(1e3 * part / number for part in took))
            say(
                f"init_sipi, 2 vCPUs, {words} ({run.alive} hosts): {number / took.wall:,.0f} rounds/s, {each.wall:.2f} ms each\n"
                f"  CPU ms each: hosts {each.hosts:.2f}, their sockets {each.frames:.2f}, judging {each.judging:.2f}, "
                f"driver otherwise {each.driver:.2f}; {asked / number:.1f} questions whether it is over"
            )


def transports() -> None:
    """Sockets beside Ray calls."""
    for transport in ("sockets", "ray"):
        packed: dict[str, Any] = {"placement": "packed", "hosts": 2, "transport": transport}
        with Measured(case_of("init_sipi", 2, "before"), **packed) as run:
            sample = run.sample()
            rate = sample.rounds / sample.seconds
        with Measured(case_of(NEIGHBOURS, 256), **packed) as run:
            messages = run.sample().rate
        # Two vCPUs, each on the cells of the other's host, and no store buffers: each access is a round trip.
        with Measured(case_of(NEIGHBOURS, 2, memory="sc"), noise=None, **packed) as run:
            sample = run.sample()
            trip = median(sample.each) / (sample.messages / sample.rounds / 4)
        say(
            f"{transport}: {rate:,.0f} rounds/s of init_sipi, {messages:,.0f} messages/s of 256 neighbours, "
            f"{trip * 1e6:,.0f} us there and back"
        )


SECTIONS: dict[str, Callable[[], None]] = {
    "throughput": throughput,
    "size": size,
    "start": start,
    "rounds": rounds,
    "transports": transports,
}


def main(names: Sequence[str]) -> None:
    """Print the figures, on a Ray of our own."""
    session = Session()
    session.address = None
    session.open()
    try:
        for name in names:
            SECTIONS[name]()
    finally:
        session.close()
