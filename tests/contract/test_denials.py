"""Keys checked by the node's own view behind the real gateway: one verdict near and far, and what is denied is cut."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from gateway_harness import FixedClock, Gateway, Script, chat_body, gateway
from http_harness import Answer, eventually
from trio.testing import MockClock

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.cluster.lease import no_lease
from covey.contracts.auth import AUTHORIZE, VERIFY, Actor, AuthorizeActor, Identity, KeyLimits, VerifyKey
from covey.contracts.feeds import Admit, KeyCreate, KeyRevoke, Op, OwnerStanding, Remove
from covey.contracts.gateway import COMPLETE, Completion
from covey.contracts.inference import ChatDelta, ChatRequest, Message
from covey.contracts.keys import MINT_BYTES, MintedKey, mint
from covey.contracts.leases import DENIALS, Denied
from covey.contracts.method import Nothing
from covey.errors import CallError, Problem
from covey.roles.gateway.answers import CHOICES_AT_ONCE
from covey.roles.gateway.live import LiveRequests
from covey.store.denied import HeededRows
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Feeds, open_feeds
from covey.store.identity import Identity as NodeIdentity
from covey.store.ingest import batches_after, ingest, install, network_of, vector
from covey.store.memory import MemoryStore
from covey.store.replica import SIGN_OF_LIFE_SECONDS, Replica
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics
from covey.testing import BOB
from covey.transport.base import PeerId
from covey.transport.memory import MemoryNetwork

CHAT_PATH = "/v1/chat/completions"
CUT_SECONDS_MAX = 1.0
CLOCK = FixedClock()
NOW = int(CLOCK.now())


@dataclass
class World:
    """An auth node's store, and that of the node which checks keys: the same one, or a copy that follows it."""

    feeds: Feeds
    written: Store
    read: Store
    bus: Bus
    metrics: Metrics
    lease: CallError | None = None
    minted: int = 0

    def check_lease(self) -> None:
        if self.lease is not None:
            raise self.lease

    def replica(self, metrics: Metrics) -> Replica:
        rows = self.feeds.view if self.read is self.written else HeededRows(self.read.reader)
        return Replica(self.read, rows, CLOCK, self.check_lease, metrics)

    def serve(self, bus: Bus, metrics: Metrics) -> None:
        self.replica(metrics).serve(bus.stamped("gateway"))

    async def say(self, *ops: Op) -> None:
        await self.feeds.append(lambda _: ops)
        if self.read is not self.written:
            for kind in ("members", "keys"):
                for entries in batches_after(self.written.reader, kind, vector(self.read.reader, kind)):
                    await ingest(self.read, kind, entries, now=CLOCK.now())

    async def key(self, owner: str = "ann", **fields: Any) -> MintedKey:
        self.minted += 1
        made = mint(self.minted.to_bytes(MINT_BYTES, "little"))
        plain = {"label": "", "models": (), "limits": KeyLimits(), "created_at": NOW, "expires_at": None, "by": owner}
        create = KeyCreate(id=made.key_id, owner=owner, digest=made.digest, prefix=made.prefix, **{**plain, **fields})
        await self.say(OwnerStanding(owner=owner, epoch=1, active=True, by="x"), create)
        return made

    async def verdict(self, request: VerifyKey) -> Identity | Problem:
        try:
            return await self.bus.stamped("gateway").call(VERIFY, request)
        except CallError as error:
            return error.problem


@asynccontextmanager
async def world(where: str) -> AsyncGenerator[World, None]:
    alice, metrics = NodeIdentity(b"\1" * 32), Metrics()
    bus = Bus(PeerId("gina"), metrics)
    async with (
        open_store(MemoryStore(), metrics, in_thread=False) as written,
        open_store(MemoryStore(), metrics, in_thread=False) as copy,
        open_feeds(written, alice, CLOCK, node_name="alice", found=True) as feeds,
        bus.open(),
    ):
        if where == "copy":
            genesis = written.reader.get(GENESIS_KEY)
            assert genesis
            members = [entry for batch in batches_after(written.reader, "members", {}) for entry in batch]
            await install(copy, genesis, network_of(written.reader), members, now=CLOCK.now())
        made = World(feeds, written, copy if where == "copy" else written, bus, metrics)
        made.replica(metrics).serve(bus.stamped("gateway"))
        yield made


near_and_far = pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
both = pytest.mark.parametrize("where", ["auth node", "copy"])


async def verdicts(here: World) -> list[Identity | Problem]:
    """On one key of every kind."""
    good, other = await here.key(), await here.key("bob", models=("m",), expires_at=NOW + 1)
    revoked, expired = await here.key(), await here.key(expires_at=NOW)
    admin, disabled = await here.key("eve", admin=True), await here.key("dan")
    child = await here.key(by=f"key:{revoked.key_id}")
    await here.say(KeyRevoke(id=revoked.key_id, by="x"), OwnerStanding(owner="dan", epoch=1, active=False, by="x"))
    keys = (good, other, revoked, expired, admin, disabled, child)
    asked = [VerifyKey(key.key_id, key.digest) for key in keys]
    asked += [VerifyKey(good.key_id, bytes(32)), VerifyKey("x" * 12, bytes(32)), VerifyKey("é", b"")]
    return [await here.verdict(one) for one in asked]


async def test_the_same_verdicts_near_and_far_in_the_same_words() -> None:
    async with world("auth node") as near, world("copy") as far:
        said = await verdicts(near)
        assert said == await verdicts(far)
        assert [one.role for one in said if isinstance(one, Identity)] == ["user", "user", "admin"]
        refusals = [one for one in said if isinstance(one, Problem)]
        assert len(refusals) == 7
        assert len(set(refusals)) == 1
        for outcome, count in (("ok", 3), ("revoked", 2), ("unknown", 3), ("expired", 1), ("owner_disabled", 1)):
            assert far.metrics.registry.get_sample_value("covey_key_checks_total", {"outcome": outcome}) == count


# Through the gateway


async def forever(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    while True:
        await emit(ChatDelta("word ", tokens=1))
        await trio.sleep(0.001)


async def silent(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    await emit(ChatDelta("word ", tokens=1))
    await trio.sleep_forever()


def ask_for(node: Gateway, key: MintedKey, *, stream: bool) -> bytes:
    body = chat_body(model="scripted", stream=stream)
    return node.request(CHAT_PATH, body, headers=f"Authorization: Bearer {key.text}\r\n")


@both
async def test_without_a_lease_no_key_is_checked_whichever_it_is(where: str) -> None:
    async with world(where) as here, gateway(auth=False, serve=here.serve) as node:
        key = await here.key()
        here.lease = no_lease("Keys cannot be checked now.")
        answers = []
        for text in (key.text, mint(bytes(MINT_BYTES)).text):
            headers = f"Authorization: Bearer {text}\r\n"
            answers.append(await node.ask(CHAT_PATH, chat_body(), headers=headers))
        for answer in answers:
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["code"] == "no_lease"
            assert int(answer.headers["retry-after"]) >= 1
        assert answers[0].body == answers[1].body
        here.lease = None
        again = await node.ask(CHAT_PATH, chat_body(), headers=f"Authorization: Bearer {key.text}\r\n")
        assert again.status == 200


def revocation(key: MintedKey) -> Op:
    return KeyRevoke(id=key.key_id, by="x")


def disabling(_: MintedKey) -> Op:
    return OwnerStanding(owner="ann", epoch=2, active=False, by="x")


@both
@pytest.mark.parametrize("denial", [revocation, disabling])
@pytest.mark.parametrize("script", [forever, silent])
async def test_what_is_denied_ends_in_an_error_at_once(
    where: str, denial: Callable[[MintedKey], Op], script: Script
) -> None:
    """Mutation: leave the last check out of `Answers.batch`, or the end of the replies out of `Live.end`."""
    async with world(where) as here, gateway(auth=False, serve=here.serve) as node:
        node.inference.script = script
        key, other = await here.key("ann"), await here.key("bob")
        client = node.served.client
        async with client() as one, client() as two, client() as three:
            await one.send(ask_for(node, key, stream=True))
            await two.send(ask_for(node, key, stream=False))
            await three.send(ask_for(node, other, stream=True))
            assert b"word" in await one.until(b"word ")
            assert b"word" in await three.until(b"word ")
            await eventually(lambda: node.inference.running == 3)
            began = trio.current_time()
            await here.say(denial(key))
            await eventually(lambda: node.inference.running == 1, CUT_SECONDS_MAX)
            took = trio.current_time() - began
            last = await one.until(b"0\r\n\r\n")
            assert b"[DONE]" not in last
            error = json.loads(last.split(b"event: error\ndata: ")[1].split(b"\n")[0])["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            answer: Answer = await two.answer()
            assert answer.status == 401
            assert took < CUT_SECONDS_MAX
            if script is forever:
                assert b"word" in await three.until(b"word ")  # somebody else's goes on
        assert node.sample("covey_requests_total", route=CHAT_PATH, model="scripted", outcome="unauthenticated") == 2


async def test_a_prompt_that_was_worked_on_is_counted_though_its_key_was_revoked_before_the_first_token() -> None:
    """Mutation: leave `has_ended` out of `Choice.batch`."""

    async def mute(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await trio.sleep_forever()

    async with world("auth node") as here, gateway(auth=False, serve=here.serve) as node:
        node.inference.script = mute
        key = await here.key("ann")
        async with node.served.client() as client:
            await client.send(ask_for(node, key, stream=False))
            await eventually(lambda: node.inference.running == 1)
            await here.say(revocation(key))
            assert (await client.answer()).status == 401
        assert node.sample("covey_prompt_tokens_total", model="scripted") > 0


@near_and_far
async def test_what_a_node_calls_unauthenticated_is_no_denial_of_ours(far: bool) -> None:
    """Mutation: go by the error's code in `Choice.batch`: the prompt is billed, though nobody worked on it."""

    async def refused(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        raise CallError("unauthenticated", "The upstream does not know our key.")

    async with gateway(far=MemoryNetwork() if far else None) as node:
        node.inference.script = refused
        await node.ask(CHAT_PATH, chat_body(model="scripted"))
        assert node.sample("covey_requests_total", route=CHAT_PATH, model="scripted", outcome="unauthenticated") == 1
        assert node.sample("covey_prompt_tokens_total", model="scripted") == 0


@near_and_far
async def test_choices_that_wait_their_turn_are_not_begun_with_a_key_that_was_denied(far: bool) -> None:
    """Their client reads slowly, so that nobody waits for an answer when the denial comes.

    Mutation: leave the first check out of `Way.batch`. Each begins then, and is ended at once.
    """

    async def flood(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        for _ in range(15):
            await emit(ChatDelta("word " * 50_000, tokens=1))
        await trio.sleep_forever()

    network = MemoryNetwork() if far else None
    async with world("auth node") as here, gateway(auth=False, serve=here.serve, far=network) as node:
        node.inference.script = flood
        key = await here.key("ann")
        body = chat_body(model="scripted", stream=True, n=3 * CHOICES_AT_ONCE)
        async with node.served.client(receive_buffer_bytes=4096) as client:
            await client.send(node.request(CHAT_PATH, body, headers=f"Authorization: Bearer {key.text}\r\n"))
            await eventually(lambda: node.inference.running == CHOICES_AT_ONCE)
            await here.say(revocation(key))
            await eventually(lambda: node.inference.running == 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(node.inference.requests) == CHOICES_AT_ONCE
            client.hang_up("rst")


async def test_a_request_that_is_still_on_its_way_to_its_node_is_cut() -> None:
    """It is longer than what the link holds, and the other machine stands still. Mutation: no scope around `_reach`."""
    network = MemoryNetwork()
    async with world("auth node") as here, gateway(auth=False, serve=here.serve, far=network) as node:
        key = await here.key("ann")
        headers = f"Authorization: Bearer {key.text}\r\n"
        async with node.served.client() as client:
            await client.send(node.request(CHAT_PATH, chat_body(), headers=headers))  # now it knows who has which model
            assert (await client.answer()).status == 200
            network.freeze(BOB)
            await client.send(node.request(CHAT_PATH, chat_body("x " * 600_000), headers=headers))
            await eventually(lambda: node.parts.metrics.registry.get_sample_value("covey_num_requests_in_flight") == 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await here.say(revocation(key))
            with trio.fail_after(CUT_SECONDS_MAX):
                assert (await client.answer()).status == 401
            network.thaw(BOB)


async def test_a_removed_auth_nodes_keys_are_cut() -> None:
    """Its later entries are void, and with them the keys that it made."""
    mallory = NodeIdentity(b"\2" * 32)
    async with world("copy") as here, gateway(auth=False, serve=here.serve) as node:
        node.inference.script = forever
        await here.say(Admit(peer=mallory.peer_id, roles=("auth",), name="mallory", by="x"))
        async with _second_author(here, mallory) as (theirs, store):
            made = mint(b"\7" * MINT_BYTES)
            create = KeyCreate(
                id=made.key_id, owner="ann", digest=made.digest, prefix="", label="", models=(), limits=KeyLimits(),
                created_at=NOW, expires_at=None, by="ann",
            )  # fmt: skip
            await theirs.append(lambda _: [OwnerStanding(owner="ann", epoch=1, active=True, by="x"), create])
            for entries in batches_after(store.reader, "keys", vector(here.read.reader, "keys")):
                await ingest(here.read, "keys", entries, now=CLOCK.now())
        async with node.served.client() as one:
            await one.send(ask_for(node, made, stream=True))
            await one.until(b"word ")
            await here.say(Remove(peer=mallory.peer_id, cutoffs={}, by="x"))
            last = await one.until(b"0\r\n\r\n")
            assert b"event: error" in last
            assert b"[DONE]" not in last


@asynccontextmanager
async def _second_author(here: World, identity: NodeIdentity) -> AsyncGenerator[tuple[Feeds, Store], None]:
    genesis = here.written.reader.get(GENESIS_KEY)
    assert genesis
    async with open_store(MemoryStore(), Metrics(), in_thread=False) as store:
        members = [entry for batch in batches_after(here.written.reader, "members", {}) for entry in batch]
        await install(store, genesis, network_of(here.written.reader), members, now=CLOCK.now())
        async with open_feeds(store, identity, CLOCK, node_name="mallory") as feeds:
            yield feeds, store


async def test_no_denial_falls_between_the_check_and_the_watch() -> None:
    """Mutation: `watch` only once the key is verified."""
    async with world("copy") as here:
        replica, key = here.replica(here.metrics), await here.key()

        async def verify(caller: Caller, request: VerifyKey) -> Identity:
            identity = replica.verify(caller, request)
            if request.key_id == key.key_id and not hit.is_set():
                hit.set()
                await here.say(revocation(key))
                await trio.testing.wait_all_tasks_blocked(0.01)
            return identity

        def serve(bus: Bus, metrics: Metrics) -> None:
            bus.stamped("gateway").serve(VERIFY, verify)
            bus.stamped("gateway").serve_stream(DENIALS, replica.denials)

        hit = trio.Event()
        async with gateway(auth=False, serve=serve) as node:
            node.inference.script = forever
            async with node.served.client() as client:
                await client.send(ask_for(node, key, stream=False))
                assert (await client.answer()).status == 401


async def test_a_disabled_persons_chat_is_cut_and_another_ones_is_not() -> None:
    async with world("copy") as here:

        async def authorize(caller: Caller, request: AuthorizeActor) -> Identity:
            return Identity("session:" + request.actor.session, request.actor.session)

        def serve(bus: Bus, metrics: Metrics) -> None:
            here.serve(bus, metrics)
            bus.stamped("auth").serve(AUTHORIZE, authorize)

        ended: dict[str, str] = {}

        async def chat(node: Gateway, owner: str) -> None:
            request = Completion(Actor(session=owner), ChatRequest("scripted", (Message("user", "x"),)))
            try:
                async with node.bus.stamped("web").stream(COMPLETE, request) as deltas:
                    async for _ in deltas:
                        pass
            except CallError as error:
                ended[owner] = f"{error.code} {error.reason}"

        async with gateway(auth=False, serve=serve) as node, trio.open_nursery() as nursery:
            node.inference.script = forever
            for owner in ("ann", "bob"):
                nursery.start_soon(partial(chat, node, owner))
            await eventually(lambda: node.inference.running == 2)
            await here.say(OwnerStanding(owner="ann", epoch=2, active=False, by="x"))
            await eventually(lambda: node.inference.running == 1 and bool(ended), CUT_SECONDS_MAX)
            assert ended == {"ann": "unauthenticated session"}
            nursery.cancel_scope.cancel()


def test_a_session_that_was_denied_while_it_was_asked_about() -> None:
    requests = LiveRequests(Bus(PeerId("gina"), Metrics()).stamped("gateway"))
    with requests.watch(None) as live:
        live.owners_denied(("ann",))
        live.check()
        live.belongs_to("bob")
        live.check()
        live.owners_denied(("eve",))
        live.check()
        live.owners_denied(("bob",))
        with pytest.raises(CallError):
            live.check()
    with requests.watch(None) as live:
        live.owners_denied(("ann",))
        live.belongs_to("ann")
        with pytest.raises(CallError):
            live.check()


# The news


async def test_the_news_begin_at_once_and_give_signs_of_life(autojump_clock: MockClock) -> None:
    async with world("copy") as here:
        key = await here.key()
        async with here.bus.stamped("gateway").stream(DENIALS, Nothing()) as news:
            items = aiter(news)
            assert await anext(items) == Denied()
            assert trio.current_time() < SIGN_OF_LIFE_SECONDS
            await here.key("bob")  # nothing is denied by it
            assert await anext(items) == Denied()
            await here.say(revocation(key), OwnerStanding(owner="bob", epoch=1, active=False, by="x"))
            assert await anext(items) == Denied((key.key_id,), ("bob",))
            await here.say(Remove(peer="gone", cutoffs={}, by="x"))
            assert await anext(items) == Denied(authors=True)


async def test_a_gateway_follows_again_where_the_news_broke_off(autojump_clock: MockClock) -> None:
    """And heeds what was denied meanwhile."""
    asked = 0
    bus = Bus(PeerId("gina"), Metrics())

    async def denials(caller: Caller, request: Nothing, emit: Emit[Denied]) -> None:
        await emit(Denied())
        raise CallError("draining", "This node is stopping.")

    async def verify(caller: Caller, request: VerifyKey) -> Identity:
        nonlocal asked
        asked += 1
        raise CallError("unauthenticated" if asked > 2 else "unreachable", "No.")

    handle = bus.stamped("gateway")
    handle.serve(VERIFY, verify)
    handle.serve_stream(DENIALS, denials)
    requests = LiveRequests(handle)
    async with bus.open(), trio.open_nursery() as nursery:
        nursery.start_soon(requests.follow)
        with requests.watch(VerifyKey("x" * 12, b"")) as live, trio.fail_after(60):
            await eventually(lambda: asked >= 3)
            with pytest.raises(CallError) as refusal:
                live.check()
        assert refusal.value.code == "unauthenticated"  # and never for want of an answer
        nursery.cancel_scope.cancel()
