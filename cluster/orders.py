"""What a supervisor is told to start. No Ray here: the command line writes it before Ray may be imported."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .config import NfoldConfig
from .local_shape import RayNodeShape

SOCKET_NAME = "supervisor.sock"


class Orders(BaseModel):
    """A local cluster to start.

    Attributes:
        nodes: to start with, the head first.
        cores_per_node: of nodes that are added later.
        temp_dir: where Ray and the supervisor keep sockets and logs; goes away with them.
        environment: what Ray's processes and their clients need in theirs.
    """

    model_config = ConfigDict(frozen=True)

    config: NfoldConfig
    nodes: tuple[RayNodeShape, ...]
    cores_per_node: int
    temp_dir: Path
    environment: dict[str, str]

    @property
    def socket(self) -> Path:
        """Where the supervisor will listen."""
        return self.temp_dir / SOCKET_NAME
