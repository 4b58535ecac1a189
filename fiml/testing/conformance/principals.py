"""What a principal sees. The refusals stand in the lifecycle's table."""

from uuid import UUID

import pytest

from fiml.core.errors import NotPermitted
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.conformance.suite import OWNER, STRANGER, Suite, existing, listing


class PrincipalSuite(Suite):
    """Everybody sees what is theirs, and that there is nothing else."""

    async def test_a_principal_creates_sessions_of_its_own(self, store: SessionStore) -> None:
        session = await store.as_principal(OWNER).create_session(["AAPL"], SessionType.EQUITY)

        assert session.user_id == OWNER
        assert (await existing(store.as_principal(OWNER), session.id)).id == session.id
        assert await store.as_principal(STRANGER).get_session(session.id) is None

    async def test_a_principal_creates_none_for_another(self, store: SessionStore) -> None:
        with pytest.raises(NotPermitted):
            await store.as_principal(STRANGER).create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)

        assert await listing(store, None) == []

    async def test_a_principal_lists_only_its_own(self, store: SessionStore) -> None:
        mine = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id=STRANGER)
        await store.create_session(["AAPL"], SessionType.EQUITY)
        principal = store.as_principal(OWNER)

        assert [found.id for found in await listing(principal, None)] == [mine.id]
        assert [found.id for found in await listing(principal, OWNER)] == [mine.id]
        with pytest.raises(NotPermitted):
            await principal.list_user_sessions(STRANGER)

    async def test_a_session_of_nobody_is_no_principals(self, store: SessionStore) -> None:
        live = await store.create_session(["AAPL"], SessionType.EQUITY)
        ended = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.archive_session(ended.id)

        for session_id in (live.id, ended.id):
            assert await store.as_principal(OWNER).get_session(session_id) is None
            assert not await store.as_principal(OWNER).delete_session(session_id)

    async def test_the_store_itself_and_the_local_user_see_everybodys(self, store: SessionStore) -> None:
        ids = {(await store.create_session(["AAPL"], SessionType.EQUITY, user_id=user)).id for user in ("a", "b", None)}

        for view in (store, store.as_principal(None)):
            assert {found.id for found in await listing(view, None)} == ids
            assert all([await view.get_session(session_id) for session_id in ids])

    async def test_similar_names_are_different_principals(self, store: SessionStore) -> None:
        names = ["ann", "Ann", "ann ", "an", "ann\u0301", "%", "*", "a*"]
        ids: dict[str, UUID] = {}
        for name in names:
            ids[name] = (await store.create_session(["AAPL"], SessionType.EQUITY, user_id=name)).id

        for name in names:
            view = store.as_principal(name)
            assert [found.id for found in await listing(view, name)] == [ids[name]]
            assert [other for other in names if await view.get_session(ids[other])] == [name]
