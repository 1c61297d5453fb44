"""Whom a router knows: models, their pools, and the replicas in these, as they come and go."""

from collections.abc import Collection, Sequence

from ..models.errors import UnknownModelError
from .addresses import ReplicaAddress
from .model_state import Model
from .replica_connections import ReplicaConnections
from .replica_loads import ReplicaLoads
from .request_table import RequestTable
from .router_settings import RouterSettings
from .router_state import Pool, Replica
from .speed import StepLine
from .speed_prior import SpeedPrior


class Roster:
    """
    Attributes:
        models: each at the place that its number says; there may be more later.
    """

    def __init__(
        self,
        table: RequestTable,
        loads: ReplicaLoads,
        connections: ReplicaConnections,
        settings: RouterSettings,
    ) -> None:
        self.models: list[Model] = []
        self._table = table
        self._loads = loads
        self._connections = connections
        self._settings = settings
        self._by_name: dict[str, Model] = {}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._priors: tuple[SpeedPrior, ...] = ()
        for name, max_queued in settings.models.items():
            self._add_model(name, max_queued)

    @property
    def pools(self) -> Collection[Pool]:
        """Of all models."""
        return self._pools.values()

    def model(self, name: str) -> Model:
        """Raises UnknownModelError when it is not served."""
        model = self._by_name.get(name)
        if model is None:
            served = ", ".join(sorted(self._by_name)) or "none"
            raise UnknownModelError(f"model {name!r} is not served here; these are: {served}", "model")
        return model

    def model_of(self, replica: Replica) -> Model:
        return self._by_name[replica.address.model]

    def update(self, addresses: Sequence[ReplicaAddress], quarantined: Collection[str]) -> None:
        """See `Router.update_replicas`."""
        listed = {address.replica_id: address for address in addresses}
        for replica in self._connections:
            address = listed.get(replica.replica_id)
            replica.listed = address is not None
            if address is not None and address != replica.address:
                self._connections.lose(replica, "another process took its name")
                self._drop(replica)
        self.drop_ended()
        for address in listed.values():
            if self._connections.get(address.replica_id) is None:
                self._add(address)
        for replica in self._connections:
            replica.quarantined = replica.replica_id in quarantined

    def drop_ended(self) -> None:
        """Part from those that are not listed any more and hold nothing of this router."""
        for replica in self._connections:
            if not replica.listed and not replica.num_in_flight:
                self._drop(replica)

    def take_priors(self, priors: Sequence[SpeedPrior]) -> None:
        """What pools start from of whose steps nothing was seen, now and later."""
        self._priors = tuple(priors)
        for pool in self.pools:
            self._take_prior(pool)

    def _add_model(self, name: str, max_queued: int) -> Model:
        model = Model(name, len(self.models), max_queued, self._table, self._loads)
        self._by_name[name] = model
        self.models.append(model)
        return model

    def _add(self, address: ReplicaAddress) -> None:
        model = self._by_name.get(address.model) or self._add_model(address.model, self._settings.max_queued)
        pool = self._pools.get((address.model, address.pool))
        if pool is None:
            pool = self._pools[address.model, address.pool] = Pool(address.model, address.pool)
            model.pools.append(pool)
        replica = self._connections.add(address, pool)
        pool.set_replicas([*pool.replicas, replica])
        self._take_prior(pool)
        model.note_replicas()

    def _take_prior(self, pool: Pool) -> None:
        if pool.line.costs is None and pool.replicas:
            for prior in self._priors:
                if prior.fits(pool.replicas[0].address):
                    pool.line = StepLine.from_baseline(prior.points)

    def _drop(self, replica: Replica) -> None:
        pool, model = replica.pool, self.model_of(replica)
        pool.set_replicas([each for each in pool.replicas if each is not replica])
        model.note_replicas()
        model.prefixes.forget(replica.number)
        self._connections.drop(replica)
