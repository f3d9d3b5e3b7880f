"""The dashboard: people's pages. It reaches everything through the bus and stores nothing."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import trio

from covey.http.asgi import ASGIApp
from covey.roles.base import Parts, Role
from covey.roles.web.config import WebConfig


@asynccontextmanager
async def open_web(config: WebConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """Serve the dashboard at "/" until closed."""
    # Quart takes a quarter of a second to import: nodes without this role, and `covey status`, do not pay for it.
    from covey.roles.web.app import build, digest_of
    from covey.roles.web.context import Web

    surroundings = Web(
        config=config,
        bus=parts.bus,
        node=parts.node,
        clock=parts.clock,
        assets=parts.assets,
        static_version=await digest_of(parts.assets / "static"),
    )
    app = build(surroundings)
    async with trio.open_nursery() as nursery:
        # The listener delivers no lifespan to what is mounted: this is it. Quart's own nursery is for tasks that
        # requests start in the background; the dashboard starts none, so nothing is left to wait for at the end.
        app.nursery = nursery
        await app.startup()
        parts.http.mount("/", cast(ASGIApp, app))  # the same protocol, in Hypercorn's names for its messages
        try:
            yield
        finally:
            parts.http.unmount("/")
            with trio.CancelScope(shield=True):
                await app.shutdown()
            nursery.cancel_scope.cancel()


ROLE = Role("web", WebConfig, open_web, after=("auth", "gateway"))
