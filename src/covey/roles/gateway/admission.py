"""Who may ask for what. One credential extractor for every path and every spelling."""

import logging

import trio

from covey.bus.bus import BusHandle
from covey.contracts.auth import AUTHORIZE, KEY_USED, VERIFY, Actor, AuthorizeActor, Identity, KeyUsed, VerifyKey
from covey.contracts.gateway import may_use_route
from covey.contracts.keys import INVALID_KEY
from covey.contracts.keys import parse as parse_key
from covey.errors import CallError
from covey.roles.base import Clock

log = logging.getLogger(__name__)

USED_KEYS_MAX = 10_000
"""How many keys' use is remembered between two reports."""

OPERATOR = Identity(key_id="operator", owner="operator", role="admin")
"""Who calls through the node's own door: an embedding program, or `covey chat` over the Unix socket."""


class Admission:
    """Verifies credentials through the auth role, wherever it is, and tells it which were used."""

    def __init__(self, bus: BusHandle, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._used_at: dict[str, int] = {}

    async def identify(self, key: VerifyKey) -> Identity:
        """Whom a key speaks for. Only its id and hash leave this node.

        Raises:
            CallError: `unauthenticated`; `unreachable` (`no_lease`) and the like where nobody can say.
        """
        identity = await self._bus.call(VERIFY, key)
        if identity.key_id in self._used_at or len(self._used_at) < USED_KEYS_MAX:
            self._used_at[identity.key_id] = int(self._clock.now())
        return identity

    async def identify_actor(self, actor: Actor) -> Identity:
        """Whom a session or a key speaks for, asked for by the dashboard."""
        return await self._bus.call(AUTHORIZE, AuthorizeActor(actor))

    async def report_use(self, *, every_seconds: float) -> None:
        """Tell the auth role now and then which keys were used; runs until cancelled."""
        while True:
            await trio.sleep(every_seconds)
            await self.flush_use()

    async def flush_use(self) -> None:
        """Tell it now. What cannot be told is kept for the next time."""
        if not self._used_at:
            return
        batch, self._used_at = self._used_at, {}
        told = False
        try:
            await self._bus.call(KEY_USED, KeyUsed(batch))
            told = True
        except CallError as error:
            log.info("The use of keys could not be reported; it is kept for the next time: %s", error)
        finally:
            if not told:  # cancelled, too
                self._used_at = {**batch, **self._used_at}


def asked_key(text: str) -> VerifyKey:
    """What is asked about a key: `unauthenticated` for a text that cannot be one."""
    parsed = parse_key(text)
    if parsed is None:
        raise CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")
    return VerifyKey(parsed.key_id, parsed.digest)


def check_route(identity: Identity, route: str) -> None:
    """Raise `forbidden` where the key may not use a path, as the table of routes names it."""
    if not may_use_route(identity.routes, route):
        raise CallError("forbidden", f"This key may not use {route}.", reason="route_not_allowed")


def check_model(identity: Identity, model: str) -> None:
    """Raise `forbidden` where the key may not use a model."""
    if identity.models and model not in identity.models:
        raise CallError(
            "forbidden", f"This key may not use the model {model!r}.", reason="model_not_allowed", param="model"
        )
