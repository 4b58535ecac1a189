"""The audit trail: each change, who made it and when, and how many of them a session takes."""

from datetime import timedelta

import pytest

from fiml.core.errors import SessionConflict, SessionFull
from fiml.sessions.models import SessionType
from fiml.sessions.rights import Role
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.grants_model import EDITOR, VIEWER, shared_session
from fiml.testing.conformance.suite import OWNER, STRANGER, OpenStore, Suite, existing, listing
from fiml.testing.samples import make_query


class TrailSuite(Suite):
    """What is done to a session is written down in the step that does it."""

    async def test_the_trail_has_every_change_who_made_it_and_when(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        owner = store.as_principal(OWNER)
        admin = store.as_principal(None, name="root")
        session = await owner.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        clock.advance(seconds=1)
        query = make_query()
        await owner.record_query(session.id, query, context={"a": 1})
        await owner.share_session(session.id, EDITOR, Role.EDITOR)
        await store.as_principal(EDITOR).remember(session.id, conclusions=["dear"])
        await admin.extend_session(session.id, 1)
        await store.archive_session(session.id)
        await owner.resume_session(session.id)
        await owner.unshare_session(session.id, EDITOR)
        read = await existing(owner, session.id)
        read.tags.append("done")
        read.title = "Apple"
        await owner.update_session(session.id, read)

        trail = await owner.get_audit_trail(session.id)

        assert [(each.did, each.by) for each in trail] == [
            ("create", OWNER),
            ("record", OWNER),
            ("share", OWNER),
            ("update", EDITOR),
            ("extend", "root"),
            ("archive", None),
            ("resume", OWNER),
            ("revoke", OWNER),
            ("update", OWNER),
        ]
        assert [each.version for each in trail] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
        assert trail[0].at == session.created_at
        assert trail[1].at == session.created_at + timedelta(seconds=1)
        assert [each.detail for each in trail[1:4]] == [
            {"queries": [query.id.hex], "parts": ["context"]},
            {"with": EDITOR, "role": "editor"},
            {"parts": ["context"]},
        ]
        assert trail[8].detail == {"parts": ["title", "tags"]}

    async def test_an_update_that_adds_a_query_in_front_records_only_this_one(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.record_query(session.id, make_query())
        session = await existing(store, session.id)
        query = make_query()
        session.state.history.queries.insert(0, query)

        await store.update_session(session.id, session)

        assert (await store.get_audit_trail(session.id))[-1].detail == {"queries": [query.id.hex]}

    async def test_what_changes_nothing_leaves_no_entry(self, store: SessionStore, clock: FrozenClock) -> None:
        session_id = await shared_session(store, clock, "live")
        before = await store.get_audit_trail(session_id)

        await existing(store, session_id)
        await store.resume_session(session_id)
        await store.unshare_session(session_id, "nobody")
        await store.share_session(session_id, VIEWER)
        query = (await existing(store, session_id)).state.history.queries[0]
        await store.as_principal(EDITOR).record_query(session_id, query)  # it is there already
        assert await store.get_audit_trail(session_id) == before
        await store.extend_session(session_id, 168)
        longest = await store.get_audit_trail(session_id)
        await store.extend_session(session_id, 168)  # it lives as long as it may
        assert await store.get_audit_trail(session_id) == longest
        before = longest
        await listing(store)

        assert await store.get_audit_trail(session_id) == before

    async def test_a_session_takes_as_many_changes_as_its_trail_holds(
        self, open_store: OpenStore, clock: FrozenClock
    ) -> None:
        """Ending it, resuming it and taking it back from others is always possible."""
        async with open_store(session_max_changes=6) as store:
            session_id = await shared_session(store, clock, "live")
            code = await store.create_share_code(session_id)
            query = make_query()
            await store.record_query(session_id, query)
            session = await existing(store, session_id)

            with pytest.raises(SessionFull, match="6 changes"):
                await store.record_query(session_id, make_query())
            session.title = "Other"
            with pytest.raises(SessionConflict):
                await store.update_session(session_id, session, expected_version=1)
            await store.record_query(session_id, query)  # it is there already

            for call in (
                store.extend_session(session_id, 1),
                store.share_session(session_id, "one more"),
                store.create_share_code(session_id),
                store.as_principal(STRANGER).redeem_share_code(session_id, str(code.code)),
            ):
                with pytest.raises(SessionFull, match="raise FIML_SESSION_MAX_CHANGES"):
                    await call
            await store.share_session(session_id, VIEWER)  # changes nothing
            await store.unshare_session(session_id, VIEWER)
            assert await store.archive_session(session_id)
            with pytest.raises(SessionFull, match="changes"):
                await store.share_session(session_id, "one more")
            await store.unshare_session(session_id, EDITOR)
            await store.resume_session(session_id)
