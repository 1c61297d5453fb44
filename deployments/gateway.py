"""The gateway: Serve's ingress, on each machine. It speaks the OpenAI API and holds a router."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from ..models.errors import CheckpointError
from . import discovery, http_protocol
from .config import ServiceConfig
from .heap import settle_heap
from .openai.api import OpenAIApi, Started
from .openai.batch import generate_batch
from .openai.formats import JsonObject
from .openai.http import HttpApp, build_http_app
from .router import Router, RouterSettings
from .router_asyncio import attach
from .served_model import ServedModel

logger = logging.getLogger(__name__)

# The name of the gateways' deployment.
GATEWAYS = "gateways"
REFRESH_S = 0.5
PUBLISH_EVERY = 2  # refreshes: once a second
SWEEP_EVERY = 10
CONNECT_TIMEOUT_S = 5.0


@serve.ingress()
class Gateway:
    """HTTP: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`. In Python, by a Serve handle:

        handle = serve.get_app_handle("nfold")
        handle.chat.remote({"model": "llama", "messages": [...]}).result()["choices"]
        handle.completions.remote({"model": "llama", "prompt": "Once"}).result()
        for chunks in handle.options(stream=True).stream_chat.remote({...}):   # also stream_completions
            for chunk in chunks: ...
        handle.generate_batch.remote("llama", [[1, 2, 3], "Once"], {"max_tokens": 16}).result()

    Requests, answers and chunks are dicts as in OpenAI's API. A stream's item is a list of the chunks that were
    ready, because an item costs more than a token. Errors are nfold's own (`models/errors.py`).

    Args:
        config: of the service.
        pools: the pools' deployments, which makes them part of the application; no token goes this way.
    """

    async def __init__(self, config: ServiceConfig, *pools: DeploymentHandle) -> None:
        del pools
        self._config = config
        self._gateway_id = f"gateway-{serve.get_replica_context().replica_tag}"
        models = await asyncio.to_thread(_load_models, config, self._gateway_id)
        keys = await asyncio.to_thread(discovery.service_keys, config.name)
        queues = {model.name: model.max_queued_requests for model in config.models}
        settings = RouterSettings(models=queues, prefix_affinity_s=config.routing.prefix_affinity_s)
        self._router = Router(self._gateway_id, keys, settings)
        self._api = OpenAIApi(self._router, {model.name: model for model in models})
        settle_heap()
        await self._refresh()
        self._attachment = attach(self._router, asyncio.get_running_loop())
        self._refreshing = asyncio.create_task(self._refresh_for_ever())
        await self._connect()

    def __serve_build_asgi_app__(self) -> HttpApp:
        """Serve calls this after the constructor, and starts the HTTP server after that."""
        app = build_http_app(self._api, self._is_ready, self._config.http.max_body_bytes)
        http_protocol.use_for_servers(app, app.posts)
        return app

    async def chat(self, request: Mapping[str, Any]) -> JsonObject:
        """A chat completion."""
        return await self._respond(await self._api.start_chat(request))

    async def completions(self, request: Mapping[str, Any]) -> JsonObject:
        """A text completion."""
        return await self._respond(await self._api.start_completion(request))

    async def stream_chat(self, request: Mapping[str, Any]) -> AsyncGenerator[list[JsonObject]]:
        """A chat completion's chunks, as they come."""
        async for chunks in self._stream(await self._api.start_chat({**request, "stream": True})):
            yield chunks

    async def stream_completions(self, request: Mapping[str, Any]) -> AsyncGenerator[list[JsonObject]]:
        """A text completion's chunks, as they come."""
        async for chunks in self._stream(await self._api.start_completion({**request, "stream": True})):
            yield chunks

    async def generate_batch(
        self, model: str, prompts: Sequence[str | Sequence[int]], sampling: Mapping[str, Any]
    ) -> list[JsonObject]:
        """One dict per prompt: `token_ids`, `finish_reason`, `num_prompt_tokens`.

        `sampling` holds fields of a completion request, the same for all prompts. Any number of prompts may come:
        as many as fill half the model's queue are submitted at once.
        """
        served = self._api.model(model)
        queue = next(each.max_queued_requests for each in self._config.models if each.name == model)
        return await generate_batch(self._router, served, prompts, sampling, window=max(1, queue // 2))

    def check_health(self) -> None:
        """Serve replaces the gateway when this raises."""
        if self._refreshing.done():
            self._refreshing.result()

    async def __del__(self) -> None:
        """Serve awaits this once the requests in progress have ended."""
        if hasattr(self, "_refreshing"):
            self._refreshing.cancel()
            self._attachment.detach()
            self._router.close()
            await asyncio.to_thread(discovery.withdraw_gateway, self._config.name, self._gateway_id)

    async def _respond(self, started: Started) -> JsonObject:
        try:
            return await started.response()
        finally:
            started.generation.cancel()

    async def _stream(self, started: Started) -> AsyncGenerator[list[JsonObject]]:
        try:
            async for chunks in started.chunks():
                yield chunks
        finally:
            started.generation.cancel()

    def _is_ready(self) -> bool:
        return any(replica.alive for replica in self._router.snapshot().replicas)

    async def _connect(self) -> None:
        """Reach the replicas that there are, so that the first requests are not refused."""
        deadline = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        while any(replica.state == "connecting" for replica in self._router.snapshot().replicas):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(self._router.settings.tick_s)

    async def _refresh_for_ever(self) -> None:
        turn = 0
        while True:
            try:
                await self._refresh()
                if turn % PUBLISH_EVERY == 0:
                    snapshot = msgspec.msgpack.encode(self._router.snapshot())
                    await asyncio.to_thread(
                        discovery.publish_gateway, self._config.name, self._gateway_id, snapshot
                    )
                if turn % SWEEP_EVERY == SWEEP_EVERY - 1:
                    await asyncio.to_thread(discovery.remove_stale, self._config.name)
            except (RayError, OSError) as error:
                logger.warning("the head does not answer; going on with the replicas known: %s", error)
            turn += 1
            await asyncio.sleep(REFRESH_S)

    async def _refresh(self) -> None:
        replicas = await asyncio.to_thread(discovery.list_replicas, self._config.name)
        quarantined = await asyncio.to_thread(discovery.list_quarantined, self._config.name)
        self._router.update_speed_priors(await asyncio.to_thread(discovery.list_speed_priors, self._config.name))
        self._router.update_replicas(replicas, quarantined)


def _load_models(config: ServiceConfig, gateway_id: str) -> list[ServedModel]:
    """Tokenizers and limits. Raises CheckpointError, and tells it to whoever waits for the service."""
    try:
        return [ServedModel.load(model) for model in config.models]
    except CheckpointError as error:
        node_id = ray.get_runtime_context().get_node_id()
        report = discovery.StartReport(
            replica_id=gateway_id, pool=GATEWAYS, node_id=node_id, phase="failed", error=str(error)
        )
        discovery.report_start(config.name, report)
        raise
