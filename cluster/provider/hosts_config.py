"""The `provider:` section of a cluster of listed hosts, checked at the edge."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...models.errors import ConfigError

# Where `ray up` puts the private key on the head.
BOOTSTRAP_KEY = "~/ray_bootstrap_key.pem"


class HostsConfig(BaseModel):
    """
    Attributes:
        head_ip: of the host that runs the head and the autoscaler.
        head_type: its node type.
        head_port: where Ray's head listens.
        hosts: of each node type, those that may be added, in order of preference; names or addresses.
        ssh_user, ssh_private_key, ssh_port: how the head reaches them; the key is a file on the head.
        copy_paths: files and folders of the head that a host gets before it starts, at the same place.
        setup_commands: run on a host each time before it starts, so they must bear being run twice.
        start_commands: start Ray there. Before them are set: RAY_HEAD_IP, the node's labels and resources that Ray
            does not find by itself (RAY_OVERRIDE_LABELS, RAY_OVERRIDE_RESOURCES), and what the autoscaler knows the
            node by. CPU, GPU and the accelerator's type are counted by `ray start` on the host: what is broken does
            not count.
        stop_command: ends Ray there.
        setup_timeout_s, start_timeout_s: how long a host may take for all setup commands, and to join.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # Ray has fields of its own in this section

    head_ip: str
    head_type: str
    hosts: dict[str, tuple[str, ...]]
    ssh_user: str
    head_port: Annotated[int, Field(ge=1, le=65535)] = 6379
    ssh_private_key: str = BOOTSTRAP_KEY
    ssh_port: Annotated[int, Field(ge=1, le=65535)] = 22
    copy_paths: tuple[str, ...] = ()
    setup_commands: tuple[str, ...] = ()
    start_commands: tuple[str, ...] = ("ray stop", "ray start --address=$RAY_HEAD_IP:6379")
    stop_command: str = "ray stop --grace-period 10"
    setup_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    start_timeout_s: Annotated[float, Field(gt=0)] = 120.0

    @field_validator("hosts")
    @classmethod
    def _each_host_once(cls, hosts: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        every = [host for listed in hosts.values() for host in listed]
        twice = sorted({host for host in every if every.count(host) > 1})
        if twice:
            raise ValueError(f"each host has one node type; {', '.join(twice)} stands twice")
        return hosts

    @property
    def key_path(self) -> Path:
        return Path(self.ssh_private_key).expanduser()


def hosts_config(provider: dict[str, Any]) -> HostsConfig:
    """Raises ConfigError: names the field of the `provider:` section."""
    try:
        return HostsConfig.model_validate(provider)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, ("provider", *first["loc"])))
        given = "nothing" if first["type"] == "missing" else first["input"]
        raise ConfigError(field, given, first["msg"].removeprefix("Value error, ")) from None
