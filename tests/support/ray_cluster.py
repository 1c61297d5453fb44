"""Ray clusters on this machine for tests: several nodes, away from any other Ray."""

import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import ray
from nfold.deployments.config import HttpConfig
from nfold.deployments.ray_environment import ray_environment
from ray.cluster_utils import Cluster

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port of loopback that is free now, below those that systems hand out, so that it stays so."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) != 0:
                return port


@contextmanager
def local_ray(
    nodes: Sequence[Mapping[str, Any]], http: HttpConfig | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Nodes with these arguments of `Cluster.add_node`, the first as head; this process is connected.

    Yields the cluster's directory. In the end no process of the cluster is left.
    """
    directory = Path(tempfile.mkdtemp(prefix="nf-", dir="/tmp"))
    variables = {
        **ray_environment(http or HttpConfig(), directory),
        "RAY_TMPDIR": str(directory),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **(environment or {}),
    }
    with patch.dict(os.environ, variables):
        cluster = Cluster()
        try:
            for arguments in nodes:
                cluster.add_node(
                    node_ip_address=LOOPBACK,
                    object_store_memory=80 << 20,
                    include_dashboard=False,
                    no_monitor=True,
                    dashboard_agent_listen_port=0,
                    **arguments,
                )
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            yield directory
        finally:
            before = psutil.Process().children(recursive=True)
            ray.shutdown()
            cluster.shutdown()
            psutil.wait_procs(before, timeout=20)
            shutil.rmtree(directory, ignore_errors=True)
