"""What a supervisor is told to start. No Ray here: the command line writes it before Ray may be imported."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from .config import NfoldConfig
from .local_shape import RayNodeShape

SOCKET_NAME = "supervisor.sock"
AUTOSCALING_NAME = "autoscaling.json"


class Orders(BaseModel):
    """A local cluster to start.

    Attributes:
        nodes: to start with, the head first.
        cores_per_node: of nodes that are added later.
        temp_dir: where Ray and the supervisor keep sockets and logs; goes away with them.
        environment: what Ray's processes and their clients need in theirs.
        autoscaling: Ray's autoscaler's YAML as data; None where the nodes are as they are.
    """

    model_config = ConfigDict(frozen=True)

    config: NfoldConfig
    nodes: tuple[RayNodeShape, ...]
    cores_per_node: int
    temp_dir: Path
    environment: dict[str, str]
    autoscaling: dict[str, Any] | None = None

    @property
    def socket(self) -> Path:
        """Where the supervisor will listen."""
        return self.temp_dir / SOCKET_NAME

    def write_autoscaling(self) -> Path | None:
        """Put the autoscaler's YAML where its process will read it; None when there is none."""
        if self.autoscaling is None:
            return None
        path = self.temp_dir / AUTOSCALING_NAME
        path.write_text(json.dumps(self.autoscaling, indent=2))  # JSON is YAML
        return path
