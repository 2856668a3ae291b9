"""Live hosts without Ray, joined by queues: a seed picks which frame arrives next."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace

from hypothesis import strategies as st
from programs import body

from actors.pcpu import Pcpu
from actors.thread import Thread
from actors.vm import Vm
from cluster.conductor import Conductor, Finished
from cluster.engine import Engine, Record
from cluster.host import Host
from cluster.link import Link
from cluster.messages import DRIVER
from cluster.parity import Parity, Report, merge
from racevisor.scenario import Case, Scenario, Source, Variant
from racevisor.world import Execution

WORDS = """
    w=1 w=2 x=1 x=2 y=1 z=1 w:=3 x:=3 y:=3 r0=w r1=x r2=y r3=z mb wmb rmb x+=1 y+=1 w<>5 y<>5 x?0>7 y?1>7 x@2 y@2 y@3 z@1
    x==1 y==1 y==1>0 lock unlock choose ipi cli sti
"""
PROGRAMS = st.lists(st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=4).map(
    " | ".join
)


class Network:
    """All hosts of a case and their driver.  Frames between two of them keep their order, anything else is up to the seed.

    `hosts` says how many hold the actors; 0: one for each actor.  They may die, and be replaced.
    """

    def __init__(self, case: Case, seed: int = 0, noise: float = 0.0, hosts: int = 0, vms: int = 1) -> None:
        self.case = case
        self.dead: set[int] = set()
        self.queues: dict[tuple[int, int], deque[bytes]] = {}
        self.world = case.world()
        self.parity = Parity(case, self.world)
        actors = self.world.vm.actors
        place = [i % hosts if hosts else i for i in range(len(actors))]
        self.size = hosts or len(actors)

        def host(me: int, incarnation: int = 0) -> Host:
            engines = [Engine(case, place, me, seed=f"{seed}:{vm}", noise=noise) for vm in range(vms)]
            return Host(Link("run", me, self.wire(me), incarnation), self.size, engines)

        self.host = host
        self.hosts = [host(me) for me in range(self.size)]
        self.conductor = Conductor(Link("run", DRIVER, self.wire(DRIVER)), self.size, vms)
        self.random = Random(seed)
        self.reports: list[Report] = []
        self.records: list[Record] = []

    def wire(self, me: int) -> Callable[[int, bytes], None]:
        def send(peer: int, data: bytes) -> None:
            self.queues.setdefault((me, peer), deque()).append(data)

        return send

    def move(self) -> list[Finished] | None:
        """One host takes a turn, or one frame arrives; None if there is neither."""
        for key in self.queues:
            if key[1] in self.dead:
                self.queues[key].clear()
        turns = [host for host in self.hosts if host.busy and host.me not in self.dead]
        frames = [key for key, queue in self.queues.items() if queue]
        if not turns and not frames:
            return None
        at = self.random.randrange(len(turns) + len(frames))
        if at < len(turns):
            turns[at].turn()
            return []
        key = frames[at - len(turns)]
        data = self.queues[key].popleft()
        if key[1] == DRIVER:
            return self.conductor.receive(data)
        self.hosts[key[1]].receive(data)
        if not self.hosts[key[1]].busy or self.random.random() < 0.5:
            self.hosts[key[1]].turn()
        return []

    def kill(self, host: int) -> None:
        """It says no more; of what it has said, the end may be lost."""
        self.dead.add(host)
        for key, queue in self.queues.items():
            if key[0] == host:
                for _ in range(self.random.randint(0, len(queue))):
                    queue.pop()

    def replace(self, *lost: int) -> None:
        """Others in their places, one after the other, which the others come to know."""
        last = (0, 0)
        for host in lost:
            last = host, self.hosts[host].link.incarnation + 1
            self.hosts[host].close()
            self.hosts[host] = self.host(*last)
            self.dead.discard(host)
            for key in self.queues:
                if key[1] == host:
                    self.queues[key].clear()
            self.conductor.link.meet(*last)
            self.conductor.introduce(*last, "")
        while not self.conductor.all_met(*last):
            assert self.move() is not None, "not all know the new host"

    def until_finished(self) -> Finished:
        while True:
            done = self.move()
            assert done is not None, "nothing moves, and the driver does not know that the round has ended"
            if done:
                return done[0]

    def judge(self, done: Finished) -> Execution:
        self.reports = done.reports
        self.records = merge(done.reports)
        return self.parity.replay(done.number, done.reports, self.records)

    def play(self, number: int) -> Execution:
        """One round, up to the replay in the World."""
        self.conductor.begin(0, number)
        return self.judge(self.until_finished())


@contextmanager
def network(case: Case, seed: int = 0, noise: float = 0.0, hosts: int = 0, vms: int = 1) -> Iterator[Network]:
    net = Network(case, seed, noise, hosts, vms)
    try:
        yield net
    finally:
        net.world.close()
        for host in net.hosts:
            host.close()


class Program(Scenario):
    """Threads of tests/programs.py.  The cells live with the threads and with a third party, so some accesses are local."""

    variants = {"only": Variant("as it is")}

    def __init__(self, program: str, max_steps: int = 500) -> None:
        self.threads = program.split(" | ")
        self.bound = max_steps

    def build(self, vm: Vm, setup: str) -> None:
        pcpu = Pcpu(vm, "pcpu0")
        vm.vcpus.append(SimpleNamespace(pcpu=pcpu))  # type: ignore[arg-type]
        threads = [Thread(vm, f"P{i}", body(vm, pcpu, words.split()), seen=()) for i, words in enumerate(self.threads)]
        third = vm.guest_memory(y=0, mutex="")
        owners = {"w": threads[0], "x": threads[-1], "y": third, "z": pcpu}
        cells = {name: third.y if owner is third else owner.cell(name) for name, owner in owners.items()}  # type: ignore[attr-defined]
        vm.memory = SimpleNamespace(mutex=third.mutex, **cells)  # type: ignore[assignment, attr-defined]

    def outcome(self, vm: Vm) -> str:
        return " ".join(f"{key}={value}" for actor in vm.actors if isinstance(actor, Thread) for key, value in actor.seen)  # type: ignore[attr-defined]


def case_of(scenario: Scenario, memory: str) -> Case:
    return Case(scenario, Source("program.py", ""), "only", "default", memory)
