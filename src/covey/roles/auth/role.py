"""The auth role: opens the feeds, founding the network where there is none, and serves people, keys and membership."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from covey.contracts import audit, auth, membership
from covey.roles.auth.accounts import Accounts
from covey.roles.auth.admission import Admission
from covey.roles.auth.audit import Auditing
from covey.roles.auth.backoff import Backoff, LogInGuard, Pace
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.holders import Holders
from covey.roles.auth.key_usage import KeyUsage
from covey.roles.auth.keys import Keys
from covey.roles.auth.limit_owner import LimitOwner
from covey.roles.auth.node_invites import AREA, InviteBook, NodeInvites
from covey.roles.auth.nodes import Nodes
from covey.roles.auth.passwords import Passwords
from covey.roles.auth.realm import Realm
from covey.roles.auth.registration import Registration
from covey.roles.auth.session_index import SessionIndex
from covey.roles.auth.sessions import Sessions, learn_sessions
from covey.roles.auth.setup import Setup
from covey.roles.auth.sight import Sight
from covey.roles.base import Parts, Role
from covey.store.acks import Acks
from covey.store.denied import restated
from covey.store.feeds import Decision, Feeds, open_feeds
from covey.store.kv import Reader
from covey.store.replica import Replica
from covey.store.rows import SessionRow
from covey.store.tails import FeedTails

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_auth(config: AuthConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """Serve until the block is left; what gateways reported of the keys' use is on the disk by then."""
    async with open_feeds(
        parts.store, parts.identity, parts.clock, node_name=parts.node.name, roles=parts.node.roles, found=True
    ) as feeds:
        acks = Acks(parts.bus)
        feeds.settled, feeds.may_write = acks.settled, parts.cluster.caught_up
        realm = await _open_realm(config, parts, feeds, acks)
        usage = KeyUsage(parts.store.local("auth"))
        limits = LimitOwner(parts.bus, feeds, parts.clock, config.lease_seconds)
        FeedTails(parts.store, parts.lifecycle.stop).serve(parts.bus)
        acks.serve()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(usage.keep, config.key_use_flush_seconds, name="keep the keys' last use")
            nursery.start_soon(learn_sessions, realm.sessions, parts.store)
            nursery.start_soon(limits.keep, name="keep what budgets have used")
            if parts.cluster.is_complete:
                _serve_all(parts, realm, usage)
                limits.serve()
                nursery.start_soon(say_kept, feeds)
            else:
                nursery.start_soon(_serve_once_complete, parts, realm, usage, limits)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()


async def _open_realm(config: AuthConfig, parts: Parts, feeds: Feeds, acks: Acks) -> Realm:
    passwords = Passwords(config.hash_cost)
    await passwords.open()
    return Realm(
        feeds=feeds,
        clock=parts.clock,
        config=config,
        metrics=parts.metrics,
        passwords=passwords,
        log_ins=LogInGuard(config.log_in_pace),
        registrations=Backoff(config.registration_pace),
        sessions=SessionIndex(feeds.view.all(SessionRow), parts.clock.now()),
        holders=Holders(feeds, acks, parts.bus),
        sight=Sight(parts.bus, config.lease_policy),
    )


async def _serve_once_complete(parts: Parts, realm: Realm, usage: KeyUsage, limits: LimitOwner) -> None:
    """A new auth node answers nobody before it knows who there is."""
    parts.lifecycle.missing["auth"] = "it fetches the accounts and keys from another auth node"
    await parts.cluster.complete()
    await say_kept(realm.feeds)
    del parts.lifecycle.missing["auth"]
    _serve_all(parts, realm, usage)
    limits.serve()
    log.info("This auth node has all accounts and keys, and serves.")


async def say_kept(feeds: Feeds) -> None:
    """Say what this node kept denied while it was no auth node (`covey.store.denied`), so that all others know it."""

    def decide(reader: Reader) -> Decision[None]:
        said, cleared = restated(reader)
        return Decision(said, None, local=cleared)

    if restated(feeds.reader)[1]:
        await feeds.append_with(decide)


def _serve_all(parts: Parts, realm: Realm, usage: KeyUsage) -> None:
    parts.cluster.lease.grant(lease_seconds=realm.config.lease_seconds, policy=realm.config.lease_policy)
    _serve(parts, realm, usage)
    _serve_membership(parts, realm)


def _serve(parts: Parts, realm: Realm, usage: KeyUsage) -> None:
    bus, accounts, sessions, keys = (
        parts.bus,
        Accounts(realm),
        Sessions(realm),
        Keys(realm, usage, parts.cluster.lease.check),
    )
    registration, setup = Registration(realm, accounts, sessions), Setup(realm, accounts, sessions)
    setup.secret()  # made before anybody can ask
    Replica(parts.store, realm.view, parts.clock, parts.cluster.lease.check, parts.metrics).serve(bus)
    bus.serve(auth.AUTHORIZE, keys.authorize)
    bus.serve(auth.CREATE_KEY, keys.create_key)
    bus.serve(auth.LIST_KEYS, keys.list_keys)
    bus.serve(auth.REVOKE_KEY, keys.revoke_key)
    bus.serve(auth.KEY_USED, keys.key_used)
    bus.serve(auth.AUTH_STATE, setup.state)
    bus.serve(auth.SET_UP, setup.set_up)
    bus.serve(auth.SET_UP_SECRET, setup.set_up_secret)
    bus.serve(auth.TAKE_RECOVERY_KEY, setup.take_recovery_key)
    bus.serve(auth.LOG_IN, sessions.log_in)
    bus.serve(auth.LOG_OUT, sessions.log_out)
    bus.serve(auth.WHO_AM_I, sessions.who_am_i)
    bus.serve(auth.CHANGE_PASSWORD, sessions.change_password)
    bus.serve(auth.REGISTER, registration.register)
    bus.serve(auth.INVITE_PERSON, registration.invite_person)
    bus.serve(auth.ADD_USER, accounts.add_user)
    bus.serve(auth.LIST_USERS, accounts.list_users)
    bus.serve(auth.SET_STANDING, accounts.set_standing)
    bus.serve(auth.RENAME_USER, accounts.rename_user)
    bus.serve(auth.LIMIT_USER, accounts.limit_user)
    bus.serve(auth.RESET_PASSWORD, accounts.reset_password)
    bus.serve(audit.AUDIT, Auditing(realm).audit)


def _serve_membership(parts: Parts, realm: Realm) -> None:
    bus, me, book = parts.bus, parts.identity.peer_id, InviteBook(parts.store.local(AREA))
    invites, nodes = NodeInvites(realm, book, parts.cluster, bus), Nodes(realm, parts.cluster, me)
    bus.serve(membership.INVITE_NODE, invites.invite_node)
    bus.serve(membership.LIST_INVITES, invites.list_invites)
    bus.serve(membership.REVOKE_INVITE, invites.revoke_invite)
    bus.serve(membership.ISSUED_INVITES, invites.issued_invites)
    bus.serve(membership.REVOKE_ISSUED, invites.revoke_issued)
    bus.serve(membership.REMOVE_NODE, nodes.remove_node)
    bus.serve(membership.PROMOTE_NODE, nodes.promote_node)
    bus.serve(membership.LIST_MINTED, nodes.list_minted)
    bus.serve(membership.RENAME_NODE, nodes.rename_node)
    bus.serve(membership.LABEL_NODE, nodes.label_node)
    parts.cluster.serve_joins(Admission(realm, book, parts.cluster, Pace()).welcome)


ROLE = Role("auth", AuthConfig, open_auth)
