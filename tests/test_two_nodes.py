"""A cluster of two nodes, started here, whose workers have Ray and our dependencies and nothing of racevisor.

Everything is a process of its own: this one may have the Ray of other tests.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster import embedded
from cluster.session import Session
from racevisor.errors import ClusterError

ROOT = Path(__file__).resolve().parent.parent


class TwoNodes(NamedTuple):
    process: subprocess.Popen[str]
    address: str
    python: Path  # that of the nodes
    elsewhere: Path  # a directory of somebody else
    environment: dict[str, str]

    def racevisor(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What the command line says, from another directory."""
        done = subprocess.run(
            [sys.executable, "-m", "racevisor.cli", *arguments, "--json"],
            cwd=self.elsewhere,
            env={**self.environment, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def remove_the_second(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    import ray  # noqa: F401  # embedded.end() finds what it needs once Ray is imported

    base = tmp_path_factory.mktemp("two-nodes").resolve()
    # A .pth file inside a directory that a .pth file added is not read, so the editable install stays invisible.
    home = base / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    (site_packages,) = home.glob("lib/python3.*/site-packages")
    theirs = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site_packages / "third_party.pth").write_text("\n".join(theirs) + "\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    directory = tempfile.mkdtemp(prefix="racevisor-", dir="/tmp")  # the path of a Unix socket is short
    nodes = {**environment, "RAY_health_check_period_ms": "500"}  # else Ray takes 15 s to see that a node is gone
    process = subprocess.Popen(
        [str(home / "bin" / "python"), "-P", str(Path(__file__).with_name("two_nodes.py")), json.dumps({"temp_dir": directory})],
        cwd=base,
        env=nodes,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        yield TwoNodes(process, address, home / "bin" / "python", base, environment)
    finally:
        embedded.end(process.pid, directory)
        process.communicate()


def test_a_node_of_the_cluster_cannot_import_racevisor_by_itself(two_nodes: TwoNodes) -> None:
    """Otherwise the tests below would not show that the code travels."""
    for package in ("actors", "racevisor", "cluster"):
        done = subprocess.run(
            [str(two_nodes.python), "-c", f"import {package}"],
            cwd=two_nodes.elsewhere,
            env=two_nodes.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"No module named '{package}'" in done.stderr


def test_a_run_joins_a_cluster_and_spreads_over_its_machines(two_nodes: TwoNodes) -> None:
    """The packages travel with the job; each round is held against the World as ever."""
    said = two_nodes.racevisor("run", "init_sipi", "--address", two_nodes.address, "--rounds", "20")
    assert said["placement"] == "dedicated: 6 actors, each a Ray actor of its own, on 2 machines"
    assert said["rounds"] == sum(said["outcomes"].values()) == 20
    assert said["aborted"] == 0 and said["crossed"] == said["messages"] > 0


def test_a_ray_job_runs_a_scenario_file_of_its_own(two_nodes: TwoNodes) -> None:
    """`ray job submit` starts its command with these two variables; what the job wants of its workers is kept, and ours added."""
    (folder := two_nodes.elsewhere / "job").mkdir()
    (folder / "mine.py").write_bytes((ROOT / "examples" / "message_passing.py").read_bytes())
    wanted = {"working_dir": str(folder), "env_vars": {"OF_THE_JOB": "1"}}
    job = {"runtime_env": wanted, "metadata": {"job_submission_id": "raysubmit_1"}}
    said = two_nodes.racevisor(
        "run", "job/mine.py", "--variant", "wmb", "--memory", "pso", "--rounds", "5", "--hosts", "2", "--transport", "ray",
        RAY_ADDRESS=two_nodes.address, RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(job),
    )  # fmt: skip
    assert said["placement"].startswith("packed: ") and said["placement"].endswith("on 2 machines")
    assert (said["scenario"], said["rounds"], said["bad"]) == ("mine", 5, 0)


LOSES_A_NODE = """
import json, sys
from cluster.live import LiveOptions, LiveRun
from racevisor.scenario import Case, load
scenario, source = load("init_sipi")
case = Case(scenario, source, "before", "plain", "tso")
with LiveRun(case, LiveOptions(rounds=12, address=sys.argv[1])) as run:
    before = [machine.id for machine in run.plan.machines]
    played = []
    for r in run.rounds():
        played.append(r.number)
        if len(played) == 3:
            print("now", flush=True)
            sys.stdin.readline()
    after = [machine.id for machine in run.plan.machines]
    aborted = [(gone.numbers, gone.host.split(", ")) for gone in run.aborted]
    print(json.dumps([before, after, run.hosts.names, played, aborted]))
"""


def test_a_node_that_disappears_aborts_its_round_and_the_run_goes_on(two_nodes: TwoNodes) -> None:
    """Its hosts are made again on the machine that is left; the broken round is no outcome, and as many as asked for are played.

    The last test of this module: the node does not come back.
    """
    with subprocess.Popen(
        [sys.executable, "-c", LOSES_A_NODE, two_nodes.address],
        cwd=two_nodes.elsewhere,
        env={**two_nodes.environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "now\n"
        two_nodes.remove_the_second()
        process.stdin.write("\n")
        process.stdin.flush()
        before, after, names, played, aborted = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert len(set(before)) == 2 and len(set(after)) == 1
    (left,) = set(after)
    gave_up = {number for numbers, _ in aborted for number in numbers}
    lost = {name for _, hosts in aborted for name in hosts}
    assert lost == {name for name, machine in zip(names, before, strict=True) if machine != left}
    assert len(played) == 12 and gave_up and not gave_up & set(played)
    assert gave_up | set(played) == set(range(12 + len(gave_up)))


def test_an_address_of_ray_client_without_grpc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would say `No module named 'grpc'`, and not that the head of the cluster needs it as well."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    session = Session("ray://127.0.0.1:10001")
    assert session.client
    with pytest.raises(ClusterError, match=r"pip install 'ray\[client\]==2[.0-9]+' .*\n.*--address auto"):
        session.open()
