"""Limits, node labels and routes of keys, and people's limits over all their keys, asked of a real auth role."""

from functools import partial

import pytest
from test_auth import OPERATOR, Network, net, network, ready, refused, session
from test_auth_audit import told

from covey.contracts.auth import (
    AUTHORIZE,
    CREATE_KEY,
    LIMIT_USER,
    LIST_KEYS,
    LIST_USERS,
    WHO_AM_I,
    Account,
    Actor,
    AuthorizeActor,
    CreateKey,
    KeyLimits,
    LimitUser,
    ListKeys,
    ListUsers,
    WhoAmI,
)
from covey.contracts.limit_words import LIMITS_MAX
from covey.store.identity import Identity as NodeIdentity
from covey.store.view import VIEW_KEY, VIEW_VERSION
from covey.testing.cluster import MemoryDisk

__all__ = ["net", "ready"]  # fixtures

ALL = KeyLimits(
    requests_per_minute=60, tokens_per_minute=1_000, concurrency=2, tokens_per_day=10_000, tokens_per_month=100_000
)


async def limit(net: Network, user: str, **limits: int | None) -> Account:
    return await net.operator.call(LIMIT_USER, LimitUser(OPERATOR, user, limits))  # type: ignore[arg-type]


async def test_a_key_carries_its_limits_labels_and_routes_to_the_gateway(ready: Network) -> None:
    alice = await ready.user()
    key = await ready.key(
        alice, label="bench", limits=ALL, node_labels=("gpu", "trusted"), routes=("/v1/*", "/api/tags")
    )
    for identity in (
        await ready.verify(key.key),
        await ready.gateway.call(AUTHORIZE, AuthorizeActor(Actor(key=key.key))),
    ):
        assert (identity.limits, identity.owner_limits) == (ALL, KeyLimits())
        assert (identity.node_labels, identity.routes) == (("gpu", "trusted"), ("/v1/*", "/api/tags"))
    (listed,) = (await ready.web.call(LIST_KEYS, ListKeys(session(alice)))).keys
    assert (listed.limits, listed.node_labels, listed.routes) == (ALL, ("gpu", "trusted"), ("/v1/*", "/api/tags"))
    assert (await told(ready))[0].what == (
        "A key “bench” was made for alice: 60 requests a minute, 1,000 tokens a minute, 2 requests at once,"
        " 10,000 tokens a day, 100,000 tokens a month, machines labelled gpu and trusted, routes /v1/* and /api/tags."
    )


@pytest.mark.parametrize("name", LIMITS_MAX)
async def test_a_limit_out_of_range_is_refused_for_keys_and_people_alike(ready: Network, name: str) -> None:
    alice = await ready.user()
    for value in (0, -1, LIMITS_MAX[name] + 1):  # type: ignore[index]
        param = f"limits.{name}"
        await refused("invalid", ready.key(alice, limits=KeyLimits(**{name: value})), param=param)
        await refused("invalid", limit(ready, "alice", **{name: value}), param=param)
    await refused("unauthenticated", ready.web.call(LIMIT_USER, LimitUser(OPERATOR, "alice", {})))
    assert (await limit(ready, "alice", **{name: LIMITS_MAX[name]})).limits == KeyLimits(**{name: LIMITS_MAX[name]})  # type: ignore[index]


async def test_a_persons_limits_hold_for_all_their_keys_and_sessions(ready: Network) -> None:
    alice = await ready.user()
    before = await ready.key(alice, limits=KeyLimits(requests_per_minute=5))
    assert (await limit(ready, "alice", tokens_per_day=100, concurrency=2)).limits == KeyLimits(
        concurrency=2, tokens_per_day=100
    )
    after = await ready.key(alice)
    changed = await limit(ready, alice.account.id, concurrency=None, requests_per_minute=9)
    expected = KeyLimits(requests_per_minute=9, tokens_per_day=100)  # what is not named stays
    assert changed.limits == expected
    assert (await ready.verify(before.key)).owner_limits == expected
    assert (await ready.verify(before.key)).limits == KeyLimits(requests_per_minute=5)
    assert (await ready.verify(after.key)).owner_limits == expected
    for actor in (session(alice), Actor(key=after.key)):
        assert (await ready.gateway.call(AUTHORIZE, AuthorizeActor(actor))).owner_limits == expected
    assert (await ready.web.call(WHO_AM_I, WhoAmI(alice.token))).limits == expected
    listed = {one.name: one.limits for one in (await ready.operator.call(LIST_USERS, ListUsers(OPERATOR))).accounts}
    assert listed == {"alice": expected, "root": KeyLimits()}
    assert (await ready.gateway.call(AUTHORIZE, AuthorizeActor(session(await ready.log_in("root"))))).owner_limits == (
        KeyLimits()
    )


async def test_the_same_limits_again_are_no_change(ready: Network) -> None:
    await ready.user()
    await limit(ready, "alice", tokens_per_day=100)
    await limit(ready, "alice", tokens_per_day=100)
    await limit(ready, "alice", concurrency=None)
    await limit(ready, "alice")
    await limit(ready, "alice", tokens_per_day=None, concurrency=1)
    said = [one.what for one in await told(ready) if "limits" in one.what]
    assert said == [
        "The limits of alice, over all keys, were set: 1 requests at once, no limit of tokens a day.",
        "The limits of alice, over all keys, were set: 100 tokens a day.",
    ]


async def test_whom_nobody_knows_gets_no_limits(ready: Network) -> None:
    await refused("not_found", limit(ready, "nobody", concurrency=1), param="user")
    await refused("not_found", limit(ready, "operator", concurrency=1), param="user")


@pytest.mark.parametrize("name", LIMITS_MAX)
async def test_a_key_with_any_limit_does_not_multiply_it(ready: Network, name: str) -> None:
    parent = await ready.key(await ready.user(), limits=KeyLimits(**{name: 5}))
    child = CreateKey(Actor(key=parent.key), limits=KeyLimits(**{name: 1}))
    await refused("forbidden", ready.web.call(CREATE_KEY, child), reason="scope")


async def test_a_key_made_with_a_key_stays_on_its_nodes_and_routes(ready: Network) -> None:
    parent = await ready.key(await ready.user(), node_labels=("gpu", "attic"), routes=("/v1/*",))
    create = partial(ready.web.call, CREATE_KEY)
    by_key = Actor(key=parent.key)
    for wish, param in (
        (CreateKey(by_key, node_labels=("gpu", "cloud")), "node_labels"),
        (CreateKey(by_key, routes=("/v1/models", "/api/tags")), "routes"),
        (CreateKey(by_key, routes=("*",)), "routes"),
    ):
        await refused("forbidden", create(wish), reason="scope", param=param)
    open_, narrow = (
        await create(CreateKey(by_key)),
        await create(CreateKey(by_key, node_labels=("gpu",), routes=("/v1/models",), limits=KeyLimits(concurrency=1))),
    )
    identity = await ready.verify(open_.key)
    assert (identity.node_labels, identity.routes) == (("gpu", "attic"), ("/v1/*",))
    identity = await ready.verify(narrow.key)
    assert (identity.node_labels, identity.routes, identity.limits) == (
        ("gpu",),
        ("/v1/models",),
        KeyLimits(concurrency=1),
    )


async def test_limits_survive_a_restart_and_a_rebuilt_view() -> None:
    kv, me = MemoryDisk(), NodeIdentity.generate()
    async with network(kv=kv, identity=me) as net:
        await net.set_up()
        alice = await net.user()
        key = await net.key(alice, limits=ALL, node_labels=("gpu",))
        await limit(net, "alice", concurrency=3)
        before = await net.verify(key.key)
    kv.write([(VIEW_KEY, str(VIEW_VERSION - 1).encode())])  # as the version before left it
    async with network(kv=kv, identity=me) as net:
        assert await net.verify(key.key) == before
    assert before.owner_limits == KeyLimits(concurrency=3)
