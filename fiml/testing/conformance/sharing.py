"""Sharing: what viewers and editors may do, codes, listings, and that others learn nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiml.core.clock import using
from fiml.core.errors import FimlError, InvalidInput, NotPermitted, SessionNotFound
from fiml.sessions.models import SessionType
from fiml.sessions.rights import (
    MAX_CODES,
    MAX_SHARES,
    Role,
)
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.grants_model import EDITOR, VIEWER, GrantsModel, refusal_of, shared_session
from fiml.testing.conformance.suite import OWNER, STRANGER, OpenStore, bounded, existing, listing
from fiml.testing.conformance.trail import TrailSuite
from fiml.testing.samples import make_query

STATES = ("live", "expired", "archived")
Verb = Callable[[SessionVerbs, UUID], Awaitable[object]]

READS: dict[str, Verb] = {
    "get": lambda view, session_id: view.get_session(session_id),
    "pack": lambda view, session_id: view.pack_context(session_id),
    "hold reason": lambda view, session_id: view.get_hold(session_id),
}
WRITES: dict[str, Verb] = {
    "record": lambda view, session_id: view.record_query(session_id, make_query()),
    "remember": lambda view, session_id: view.remember(session_id, notes=["seen"]),
    "extend": lambda view, session_id: view.extend_session(session_id, 1),
    "resume": lambda view, session_id: view.resume_session(session_id),
    "archive": lambda view, session_id: view.archive_session(session_id),
}
OWNS: dict[str, Verb] = {
    "delete": lambda view, session_id: view.delete_session(session_id),
    "share": lambda view, session_id: view.share_session(session_id, STRANGER),
    "share with itself": lambda view, session_id: view.share_session(session_id, str(view.user_id), Role.EDITOR),
    "code": lambda view, session_id: view.create_share_code(session_id),
    "unshare": lambda view, session_id: view.unshare_session(session_id, OWNER),
    "shares": lambda view, session_id: view.list_shares(session_id),
    "codes": lambda view, session_id: view.list_share_codes(session_id),
    "trail": lambda view, session_id: view.get_audit_trail(session_id),
    "hold": lambda view, session_id: view.hold(session_id, "x"),
    "release": lambda view, session_id: view.release(session_id),
}


class SharingSuite(TrailSuite):
    """A session is there for its owner and for the users it is shared with."""

    @pytest.mark.parametrize("state", STATES)
    async def test_a_viewer_reads_and_does_nothing_else(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session_id = await shared_session(store, clock, state)
        viewer = store.as_principal(VIEWER)
        before = await store.get_audit_trail(session_id)

        for name, read in READS.items():
            assert await refusal_of(read(viewer, session_id)) is None, name
        for name, verb in (WRITES | OWNS).items():
            # If the session takes this from nobody in its state, that error may come first.
            is_of_live_ones = state == "archived" and name in {"record", "remember", "extend", "archive"}
            refusal = await refusal_of(verb(viewer, session_id))
            assert refusal is NotPermitted or is_of_live_ones, name

        assert await store.get_audit_trail(session_id) == before

    async def test_an_editor_does_all_but_what_is_the_owners(self, store: SessionStore, clock: FrozenClock) -> None:
        session_id = await shared_session(store, clock, "live")
        editor = store.as_principal(EDITOR)

        for name, verb in (READS | WRITES).items():
            assert await refusal_of(verb(editor, session_id)) is None, name
        assert (await editor.resume_session(session_id)).is_archived is False
        session = await existing(editor, session_id)
        session.state.update_context("a", 1)
        assert (await editor.update_session(session_id, session)).state.context["a"] == 1
        for name, verb in OWNS.items():
            assert await refusal_of(verb(editor, session_id)) is NotPermitted, name

    @pytest.mark.parametrize("state", STATES)
    async def test_what_is_taken_back_is_as_if_it_had_never_been_given(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session_id = await shared_session(store, clock, state)
        for user in (VIEWER, EDITOR):
            await store.as_principal(OWNER).unshare_session(session_id, user)

        for user in (VIEWER, EDITOR):
            view = store.as_principal(user)
            assert await view.get_session(session_id) is None
            assert await listing(view, None) == []
            for verb in (WRITES | OWNS).values():
                assert await _outcome(verb(view, session_id)) == await _outcome(verb(view, uuid4()))
        assert await store.list_shares(session_id) == []

    async def test_somebody_gives_up_its_own_role(self, store: SessionStore, clock: FrozenClock) -> None:
        session_id = await shared_session(store, clock, "live")

        await store.as_principal(VIEWER).unshare_session(session_id, VIEWER)

        assert [share.user_id for share in await store.list_shares(session_id)] == [EDITOR]
        assert await store.as_principal(VIEWER).get_session(session_id) is None

    async def test_shares_and_trail_go_with_the_session_through_archive_and_resume(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        session_id = await shared_session(store, clock, "archived")
        shares = await store.list_shares(session_id)
        code = await store.as_principal(OWNER).create_share_code(session_id, Role.EDITOR)
        trail = await store.get_audit_trail(session_id)

        await store.as_principal(EDITOR).resume_session(session_id)

        assert await store.list_shares(session_id) == shares
        assert [each.id for each in await store.list_share_codes(session_id)] == [code.id]
        after = await store.get_audit_trail(session_id)
        assert after[: len(trail)] == trail
        assert [(each.did, each.by) for each in after[len(trail) :]] == [("resume", EDITOR)]
        assert (await existing(store.as_principal(VIEWER), session_id)).id == session_id
        assert len(await listing(store.as_principal(VIEWER), None)) == 1

    @pytest.mark.parametrize("state", STATES)
    async def test_a_code_gives_its_role_once(self, store: SessionStore, clock: FrozenClock, state: str) -> None:
        session_id = await shared_session(store, clock, state)
        code = await store.as_principal(OWNER).create_share_code(session_id, Role.EDITOR, hours=2)
        assert code.code is not None
        stranger, other = store.as_principal(STRANGER), store.as_principal("oz")
        assert await store.as_principal(code.id).get_session(session_id) is None

        await stranger.redeem_share_code(session_id, code.code)

        assert (await existing(stranger, session_id)).id == session_id
        assert [found.id for found in await listing(stranger, None)] == [session_id]
        assert await refusal_of(other.redeem_share_code(session_id, code.code)) is SessionNotFound
        assert await stranger.redeem_share_code(session_id, code.code) is Role.EDITOR  # as a retry would do
        assert await store.list_share_codes(session_id) == []
        last = (await store.get_audit_trail(session_id))[-1]
        assert (last.did, last.by, last.detail) == ("redeem", STRANGER, {"code": code.id})

    @pytest.mark.parametrize("state", STATES)
    async def test_a_code_that_is_wrong_past_or_revoked_gives_nothing(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session_id = await shared_session(store, clock, state)
        owner, stranger = store.as_principal(OWNER), store.as_principal(STRANGER)
        said = await _outcome(stranger.redeem_share_code(uuid4(), "share_none"))
        past = await owner.create_share_code(session_id, hours=1)
        assert past.code is not None
        clock.advance(hours=1)
        assert await owner.list_share_codes(session_id) == []
        assert await _outcome(stranger.redeem_share_code(session_id, past.code)) == said
        revoked = await owner.create_share_code(session_id)
        assert await owner.revoke_share_code(session_id, revoked.id)
        assert not await owner.revoke_share_code(session_id, revoked.id)

        for code in (past.code, revoked.code, "share_none"):
            assert code is not None
            assert await _outcome(stranger.redeem_share_code(session_id, code)) == said
        assert await stranger.get_session(session_id) is None
        assert "share_" not in repr(await store.list_share_codes(session_id))

    async def test_one_of_many_who_redeem_a_code_at_once_gets_it(self, store: SessionStore, clock: FrozenClock) -> None:
        session_id = await shared_session(store, clock, "live")
        code = await store.create_share_code(session_id)
        assert code.code is not None

        outcomes = await asyncio.gather(
            *(refusal_of(store.as_principal(f"u{n}").redeem_share_code(session_id, code.code)) for n in range(20))
        )

        assert outcomes.count(None) == 1
        assert len(await store.list_shares(session_id)) == 3

    async def test_a_code_never_lowers_a_role_and_is_used_up_by_a_greater_one_only(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        session_id = await shared_session(store, clock, "live")
        for user, hours in ((EDITOR, 3), (VIEWER, 2), (OWNER, 1)):
            code = await store.create_share_code(session_id, Role.VIEWER, hours)
            assert code.code is not None
            await store.as_principal(user).redeem_share_code(session_id, code.code)

        assert [(share.user_id, share.role) for share in await store.list_shares(session_id)] == [
            (EDITOR, Role.EDITOR),
            (VIEWER, Role.VIEWER),
        ]
        left = [code.expires_at for code in await store.list_share_codes(session_id)]
        assert left == sorted(left)
        assert len(left) == 3

    @pytest.mark.parametrize("state", ["live", "archived"])
    async def test_as_many_shares_and_codes_as_are_allowed(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session_id = await shared_session(store, clock, state)
        for n in range(MAX_SHARES - 2):
            await store.share_session(session_id, f"u{n}")
        for n in range(MAX_CODES):
            code = await store.create_share_code(session_id, list(Role)[n % 2])
        assert code.code is not None

        with pytest.raises(InvalidInput, match="shares would be 101"):
            await store.share_session(session_id, "one too many")
        with pytest.raises(InvalidInput, match="share codes"):
            await store.create_share_code(session_id)
        with pytest.raises(InvalidInput, match="shares would be 101"):
            await store.as_principal(STRANGER).redeem_share_code(session_id, code.code)
        await store.share_session(session_id, "u0", Role.EDITOR)  # a user with a role already doesn't count again
        clock.advance(hours=24)
        for _ in range(MAX_CODES):  # expired codes don't count either
            spare = await store.create_share_code(session_id, Role.EDITOR)
        redeemed = await store.as_principal("u1").redeem_share_code(session_id, str(spare.code))
        assert redeemed is Role.EDITOR
        assert len(await store.list_shares(session_id)) == MAX_SHARES

    @pytest.mark.parametrize(
        ("call", "problem"),
        [
            (lambda store, session_id: store.share_session(session_id, OWNER), "owns the session"),
            (lambda store, session_id: store.share_session(session_id, ""), "user_id"),
            (lambda store, session_id: store.share_session(session_id, "x" * 256), "user_id"),
            (lambda store, session_id: store.share_session(session_id, None), "user_id"),
            (lambda store, session_id: store.share_session(session_id, "u", "boss"), "role 'boss' is unknown"),
            (lambda store, session_id: store.create_share_code(session_id, "owner"), "role"),
            (lambda store, session_id: store.create_share_code(session_id, hours=0), "hours"),
            (lambda store, session_id: store.create_share_code(session_id, hours=169), "hours"),
            (lambda store, session_id: store.redeem_share_code(session_id, "x" * 101), "share code"),
            (lambda store, session_id: store.redeem_share_code(session_id, 7), "share code"),
        ],
    )
    async def test_bad_input_is_refused(self, store: SessionStore, clock: FrozenClock, call: Any, problem: str) -> None:
        session_id = await shared_session(store, clock, "live")
        before = await store.get_audit_trail(session_id)

        with pytest.raises(InvalidInput, match=problem):
            await call(store, session_id)

        assert await store.get_audit_trail(session_id) == before

    async def test_a_principal_lists_its_own_and_what_it_was_given(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        """One cursor over own and shared sessions, live and archived, newest first; the store itself lists own ones."""
        viewer = store.as_principal(VIEWER)
        expected = []
        for n in range(12):
            clock.advance(seconds=1)
            owner = VIEWER if n % 3 == 0 else OWNER
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=owner, tags=[f"t{n % 2}"])
            if n % 3:
                await store.share_session(session.id, VIEWER)
            if n % 3 == 2:
                await store.unshare_session(session.id, VIEWER)
            if n % 4 == 0:
                await store.archive_session(session.id)
            if n % 3 != 2:
                expected.append((session.id, n % 2))
        expected.reverse()

        for limit in (1, 3, 100):
            assert [found.id for found in await listing(viewer, None, limit=limit)] == [each for each, _ in expected]
            found = await listing(viewer, VIEWER, limit=limit, tag="t1")
            assert [each.id for each in found] == [each for each, tag in expected if tag]
        page = await viewer.search_sessions(None, symbol="AAPL", limit=100)
        assert [found.id for found in page] == [each for each, _ in expected]
        assert len(await listing(store, VIEWER)) == 4

    async def test_deleting_takes_it_from_everybody(self, store: SessionStore, clock: FrozenClock) -> None:
        session_id = await shared_session(store, clock, "live")

        assert await store.as_principal(OWNER).delete_session(session_id)

        assert await store.as_principal(VIEWER).get_session(session_id) is None
        assert await listing(store.as_principal(VIEWER), None) == []

    async def test_an_erased_user_has_nothing_of_others_and_others_keep_theirs(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        live = await shared_session(store, clock, "live")
        ended = await shared_session(store, clock, "archived")

        await store.erase_user(VIEWER)

        for session_id in (live, ended):
            assert [share.user_id for share in await store.list_shares(session_id)] == [EDITOR]
            assert await store.as_principal(VIEWER).get_session(session_id) is None
        assert await listing(store.as_principal(VIEWER), None) == []
        assert len(await listing(store, OWNER)) == 2

    async def test_a_shared_session_that_expires_is_archived_once_and_shared_still(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        session_id = await shared_session(store, clock, "expired")

        moved = await store.cleanup_expired_sessions(), await store.cleanup_expired_sessions()

        assert moved == (1, 0)
        for user in (OWNER, VIEWER, EDITOR):
            [listed] = await listing(store.as_principal(user), None)
            assert (listed.id, listed.is_archived) == (session_id, True)
        assert await listing(store.as_principal(VIEWER), None, include_archived=False) == []

    async def test_another_users_trail_and_shares_are_as_of_no_session(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        for state in STATES:
            session_id = await shared_session(store, clock, state)
            stranger = store.as_principal(STRANGER)
            for verb in OWNS.values():
                assert await _outcome(verb(stranger, session_id)) == await _outcome(verb(stranger, uuid4()))

    @given(st.data())
    @bounded(15)
    async def test_grants_are_those_of_the_model(self, open_store: OpenStore, data: st.DataObject) -> None:
        """The engines' own steps have the same results as `rights.changed`, live and archived."""
        with using(FrozenClock()):
            async with open_store() as store:
                session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
                model = GrantsModel(store, session.id, data.draw)
                for _ in range(data.draw(st.integers(1, 12))):
                    await model.step()
                await model.check()


async def _outcome(call: Awaitable[object]) -> object:
    """The outcome of a call, without the id that it was about."""
    try:
        return await call
    except FimlError as exc:
        session_id = getattr(exc, "session_id", None)
        return type(exc), str(exc).replace(str(session_id), "ID")
