"""How PostgreSQL is reached: by URLs of all kinds, and with TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fiml.core.errors import Misconfigured, Unavailable
from fiml.db.engines import postgres_engine
from fiml.db.postgres import PostgresDatabase
from tests.support.servers import PostgresProcess, postgres_server
from tests.support.tls import Certificates, tls_before

PASSWORD = "never-shown"  # noqa: S105  nobody's


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def reach(url: str) -> None:
    database = PostgresDatabase(url)
    try:
        await database.open()
    finally:
        await database.close()


async def test_a_server_behind_tls_is_reached_and_its_certificate_checked(
    postgres: PostgresProcess, certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    with tls_before(postgres.socket, certificates) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert="

        await reach(f"{url}{certificates.file}&sslcert={certificates.file}&sslkey={certificates.file}")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await reach(f"{url}{other.file}")


async def test_a_server_whose_certificate_nobody_can_check_is_misconfigured_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(Misconfigured, match="FIML_DATABASE_URL") as caught:
        await reach(f"postgresql://u:{PASSWORD}@127.0.0.1:1/name?sslmode=verify-full")

    assert "root.crt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("h/name?sslmode=verify", "has sslmode='verify'; valid are disable, allow, prefer, require, verify-ca, verify"),
        ("h/name?sslmode=parse", "has sslmode='parse'"),
        ("h/name?sslrootcert=/no/file.pem", "has sslrootcert='/no/file.pem', which can't be used"),
        (f"h/name?sslrootcert={__file__}", "has sslrootcert=.* which can't be used"),
        (f"h/name?sslcert={__file__}", "has sslcert=.* which can't be used"),
        ("/name?host=/socket&port=abc", "has a host or port that can't be used; valid are"),
        ("/name?host=one,two", "has a host or port that can't be used"),
        ("/name?host=one,two&port=5432,99999", "has a host or port that can't be used"),
        ("h:99999/name", "has a host or port that can't be used"),
        ("h/name?options=x", "has the parameter 'options'; known here are host, port, sslmode, sslrootcert,"),
    ],
)
def test_what_a_url_cannot_say_is_misconfigured(rest: str, problem: str) -> None:
    with pytest.raises(Misconfigured, match=f"FIML_DATABASE_URL {problem}") as caught:
        postgres_engine(f"postgresql://u:{PASSWORD}@{rest}")

    assert PASSWORD not in str(caught.value)


def test_several_servers_may_be_named() -> None:
    engine = postgres_engine("postgresql://u@/name?host=one,two&port=5432,5433")

    assert engine.url.query["host"] == "one,two"
