"""A Ray cluster on this machine: a raylet and workers of its own for each node, real processes all.

As ``ray start`` makes them, without the seconds of its imports.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from churn.workflows.ray_engine import load_ray
from tests.support.services import free_port

_COMMON = {"object_store_memory": 80_000_000, "include_log_monitor": False}


@dataclass
class Node:
    """A node that runs."""

    node: Any

    def processes(self) -> list[psutil.Process]:
        """Return everything that belongs to the node, its workers as well."""
        own = [info.process for infos in self.node.all_processes.values() for info in infos]
        living = [psutil.Process(process.pid) for process in own if process.poll() is None]
        return [one for process in living for one in (process, *process.children(recursive=True))]

    def workers(self, name: str = "") -> list[psutil.Process]:
        """Return the workers that have a task in hand, or the task of this name."""
        return [process for process in self.processes() if _title(process).startswith(f"ray::{name}")]

    def kill(self) -> None:
        """Kill all of it at once, as a machine that loses its power."""
        doomed = self.processes()
        for process in doomed:
            process.suspend()
        for process in doomed:
            process.kill()
        psutil.wait_procs(doomed, timeout=20)


@dataclass
class Cluster:
    """Nodes that know each other, all on this machine.

    Attributes:
        address: What a driver on one of the nodes connects to.
        client_address: What a driver anywhere else connects to, if the head has such a port.
        folder: Where Ray keeps its sockets and logs.
    """

    cluster: Any
    client_address: str
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, n_cpus: int, **head: Any) -> Node:
        """Start a node in this process's environment."""
        self.nodes.append(Node(self.cluster.add_node(num_cpus=n_cpus, **_COMMON, **head)))
        return self.nodes[-1]


@contextmanager
def ray_cluster(*n_cpus: int, with_client_port: bool = False) -> Iterator[Cluster]:
    """Start a node for each number of CPUs, the head first, and kill what is left of them on the way out."""
    load_ray()
    from ray.cluster_utils import Cluster as Nodes

    Path("/tmp/ray").mkdir(exist_ok=True)  # noqa: S108 it notes the newest cluster there
    # Sockets lie in it, whose paths have room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port = free_port() if with_client_port else None
        cluster = Cluster(Nodes(shutdown_at_exit=True), "", Path(folder))
        try:
            head, *others = n_cpus
            cluster.add(head, temp_dir=folder, include_dashboard=False, no_monitor=True, ray_client_server_port=port)
            cluster.client_address = f"ray://{cluster.address.rpartition(':')[0]}:{port}"
            for n in others:
                cluster.add(n)
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                node.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""
