"""The audit, asked of a real auth role over the bus: what it tells, in which words, and page by page."""

import pytest
from test_auth import CHEAP, OPERATOR, OTHER_PASSWORD, PASSWORD, Network, WallClock, network, refused, session

from covey.contracts.audit import AUDIT, AUDIT_RECORDS_MAX, Audit, AuditRecord
from covey.contracts.auth import (
    ADD_USER,
    CREATE_KEY,
    INVITE_PERSON,
    LOG_OUT,
    REGISTER,
    RESET_PASSWORD,
    REVOKE_KEY,
    SET_STANDING,
    AddUser,
    CreateKey,
    InvitePerson,
    LogOut,
    Register,
    ResetPassword,
    RevokeKey,
    SetStanding,
)
from covey.roles.auth import audit as audit_module


async def told(net: Network, **wish: object) -> list[AuditRecord]:
    page = await net.operator.call(AUDIT, Audit(OPERATOR, **wish))  # type: ignore[arg-type]
    assert page.cursor == ""
    return list(page.records)


async def a_busy_day(net: Network) -> None:
    root = await net.set_up()
    net.clock.seconds += 60
    await net.user("alice")
    key = await net.web.call(CREATE_KEY, CreateKey(session(root), user="alice", label="laptop"))
    invitation = await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR, "admin", "for Bob"))
    net.clock.seconds += 60
    bob = await net.web.call(REGISTER, Register("bob", PASSWORD, invitation.secret))
    assert bob.grant is not None
    await net.web.call(REVOKE_KEY, RevokeKey(session(root), key.id))
    await net.web.call(SET_STANDING, SetStanding(session(bob.grant), "alice", active=False))
    await net.operator.call(RESET_PASSWORD, ResetPassword(OPERATOR, "alice", OTHER_PASSWORD))
    await net.web.call(LOG_OUT, LogOut(bob.grant.token))


async def test_it_tells_who_did_what_the_latest_first() -> None:
    async with network() as net:
        await a_busy_day(net)
        lines = [(one.by_name, one.what) for one in await told(net)]
        assert lines == [
            ("operator", "The password of alice was set."),
            ("bob", "alice was disabled."),
            ("root", "The key “laptop” of alice was revoked."),
            ("bob", "The invitation “for Bob” was used by bob."),
            (lines[4][0], "The account bob was made, an administrator."),
            (lines[5][0], "bob may log in, and their keys work."),
            ("operator", "The invitation “for Bob” was made, for an administrator."),
            ("root", "A key “laptop” was made for alice."),
            ("operator", "The account alice was made, a user."),
            ("operator", "alice may log in, and their keys work."),
            ("setup", "The account root was made, an administrator."),
            ("setup", "root may log in, and their keys work."),
            ("operator", "The machine alice's was admitted as auth."),
        ]
        assert lines[4][0].startswith("invitation ")


async def test_a_record_says_when_where_by_whom_and_about_whom() -> None:
    clock = WallClock()
    async with network(clock=clock) as net:
        began = clock.seconds
        await net.set_up()
        clock.seconds += 60
        alice = await net.operator.call(ADD_USER, AddUser(OPERATOR, "alice", PASSWORD))
        made = next(one for one in await told(net) if one.subject == alice.id and "made" in one.what)
        assert (made.node, made.by, made.subject_name, made.standing) == ("alice's", "operator", "alice", "counts")
        assert made.at == pytest.approx(began + 60)
        assert {one.peer for one in await told(net)} == {made.peer}


async def test_sessions_are_told_where_they_are_asked_for() -> None:
    async with network() as net:
        await a_busy_day(net)
        quiet, all_of_it = await told(net), await told(net, sessions=True)
        extra = [one for one in all_of_it if one not in quiet]
        assert [one.what for one in extra].count("bob logged in.") == 1
        assert [one.what for one in extra].count("A session of bob ended.") == 1
        assert all("logged in" in one.what or "session" in one.what for one in extra)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("sessions", [False, True])
async def test_page_by_page_it_tells_the_same(limit: int, sessions: bool) -> None:
    async with network() as net:
        await a_busy_day(net)
        whole = await told(net, sessions=sessions)
        found: list[AuditRecord] = []
        cursor = ""
        while True:
            page = await net.operator.call(AUDIT, Audit(OPERATOR, limit, cursor, None, sessions))
            assert len(page.records) <= limit
            found += page.records
            cursor = page.cursor
            if not cursor:
                break
        assert found == whole


async def test_what_happens_meanwhile_moves_no_page() -> None:
    async with network() as net:
        await a_busy_day(net)
        whole = await told(net)
        first = await net.operator.call(AUDIT, Audit(OPERATOR, 3))
        await net.operator.call(ADD_USER, AddUser(OPERATOR, "carol", PASSWORD))
        rest = await net.operator.call(AUDIT, Audit(OPERATOR, 100, first.cursor))
        assert [*first.records, *rest.records] == whole


async def test_a_call_looks_at_so_many_entries_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "ENTRIES_PER_CALL", 2)
    async with network() as net:
        await net.set_up()
        await net.user("alice")
        for _ in range(6):
            await net.log_in("alice")
        pages = [await net.operator.call(AUDIT, Audit(OPERATOR))]
        assert pages[0].records == ()  # log-ins alone, and yet not the end
        while pages[-1].cursor:
            pages.append(await net.operator.call(AUDIT, Audit(OPERATOR, cursor=pages[-1].cursor)))
        monkeypatch.undo()
        assert [one for page in pages for one in page.records] == await told(net)


async def test_nothing_older_than_asked_for() -> None:
    async with network() as net:
        await a_busy_day(net)
        recent = await told(net, since=net.clock.seconds - 1)
        assert 0 < len(recent) < len(await told(net))
        assert all(one.at >= net.clock.seconds - 1 for one in recent)
        assert await told(net, since=net.clock.seconds + 1) == []


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": AUDIT_RECORDS_MAX + 1}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "1:keys/a/b:0\n"}, "cursor"),
        ({"cursor": "f" * 17 + ":keys/a/b:0"}, "cursor"),
        ({"cursor": "1:other/a/b:0"}, "cursor"),
        ({"cursor": "1:keys/" + "a" * 300 + "/b:0"}, "cursor"),
    ],
)
async def test_what_makes_no_sense_is_refused(wish: dict[str, object], param: str) -> None:
    async with network() as net:
        await refused("invalid", net.operator.call(AUDIT, Audit(OPERATOR, **wish)), param=param)  # type: ignore[arg-type]


async def test_a_place_that_does_not_exist_is_the_place_before_it() -> None:
    async with network() as net:
        await a_busy_day(net)
        assert await told(net, cursor="1:keys/a/b:0") == []
        assert await told(net, cursor="f" * 16 + ":secret/z/z:0") == await told(net)


async def test_only_administrators_read_it() -> None:
    async with network() as net:
        await net.set_up()
        alice = await net.user("alice")
        await refused("forbidden", net.web.call(AUDIT, Audit(session(alice))))
        key = await net.key(await net.log_in("root"))
        assert key.key
        await refused("unauthenticated", net.inference.call(AUDIT, Audit(OPERATOR)))


async def test_no_secret_is_in_it() -> None:
    async with network(CHEAP) as net:
        root = await net.set_up()
        key = await net.web.call(CREATE_KEY, CreateKey(session(root), label="laptop"))
        everything = str(await told(net, sessions=True))
        for secret in (key.key, root.token, PASSWORD, "$argon2"):
            assert secret not in everything
