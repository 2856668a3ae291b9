"""A Ray cluster of two nodes on this machine, in a process of its own; run as a script by tests/test_two_nodes.py.

Its nodes have what a stranger's machines have: Ray and our dependencies.  The environment and the working directory that this is
started in are theirs, so whatever of racevisor a worker imports has come by way of the job.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Start both nodes as the JSON of the first argument says; then obey: `remove` ends the second node."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    import ray._private.ray_constants as ray_constants
    import ray._private.utils
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # 127.0.0.1 stays 127.0.0.1; see cluster/embedded.py
    ray._private.utils.write_ray_address = lambda *_: None  # whoever says `auto` here must not find this one
    here = {
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
        "num_cpus": 2,
        "memory": 4 * 2**30,
        "object_store_memory": 80 * 2**20,
        **options,
    }
    cluster = Cluster(initialize_head=True, head_node_args=here, shutdown_at_exit=False)
    second = cluster.add_node(**here)
    say(cluster.address)
    for line in sys.stdin:
        if line == "remove\n":
            kill_all_of(second)
            cluster.remove_node(second, allow_graceful=False)
            say("removed")


def kill_all_of(node: Any) -> None:
    """What happens to the processes of a machine that goes: all at once, and the workers do not hear of it from their raylet."""
    import psutil  # Ray's own

    family = []
    for processes in node.all_processes.values():
        for one in processes:
            parent = psutil.Process(one.process.pid)
            family += [parent, *parent.children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)


def say(line: str) -> None:
    """One line for the parent."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
