"""How PostgreSQL is reached: by URLs of all kinds, and with TLS."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from fiml.core.errors import Misconfigured, Unavailable
from fiml.db.engines import postgres_engine
from fiml.db.postgres import PostgresDatabase
from fiml.db.postgres_url import parse_postgres_url
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
        (
            "h/name?sslmode=verify",
            "has sslmode='verify'; valid values are disable, allow, prefer, require, verify-ca, verify",
        ),
        ("h/name?sslmode=parse", "has sslmode='parse'"),
        ("h/name?sslrootcert=/no/file.pem", "has sslrootcert='/no/file.pem', which can't be used"),
        (f"h/name?sslrootcert={__file__}", "has sslrootcert=.* which can't be used"),
        (f"h/name?sslcert={__file__}", "has sslcert=.* which can't be used"),
        (f"h/name?sslcert={__file__}&sslkey=/no/key.pem", "has sslkey='/no/key.pem', which can't be used"),
        ("h/name?sslrootcert=system&sslmode=verify-full&sslcert=system", "has sslcert='system', which can't be used"),
        ("/name?host=/socket&port=abc", "has a host or port that can't be used; write postgresql://"),
        ("/name?host=one,two", "has a host or port that can't be used"),
        ("/name?host=one,two&port=5432,99999", "has a host or port that can't be used"),
        ("h:99999/name", "has a host or port that can't be used"),
        ("h/name?nonsense=1", "has the parameter 'nonsense'; valid here are host, port, user, password, dbname,"),
        ("one:x,two/name", "is not a URL"),
        ("one,,two/name", "is not a URL"),
        ("h/name?sslcrl=x", "has the parameter 'sslcrl'"),
        (f"h/name?password=a&{PASSWORD}=b", "has a parameter that is not known"),
        ("h/name?gssencmode=require", "has gssencmode='require'; valid values are prefer, disable"),
        ("h/name?channel_binding=require", "has channel_binding='require'; valid values are prefer, disable"),
        ("h/name?client_encoding=latin1", "has client_encoding='latin1'; valid values are UTF8"),
        (
            "h/name?target_session_attrs=standby",
            "has target_session_attrs='standby'; valid values are any, primary, read-",
        ),
        ("h/name?sslrootcert=system&sslmode=require", "has sslmode='require'; valid values are verify-full"),
    ],
)
def test_what_a_url_cannot_express_is_misconfigured(rest: str, problem: str) -> None:
    with pytest.raises(Misconfigured, match=f"FIML_DATABASE_URL {problem}") as caught:
        postgres_engine(f"postgresql://u:{PASSWORD}@{rest}")

    assert PASSWORD not in str(caught.value)


def test_of_a_parameter_that_is_given_twice_the_last_one_counts() -> None:
    _, arguments = parse_postgres_url("postgresql://u@one/name?application_name=first&application_name=last")

    assert arguments["server_settings"] == {"application_name": "last"}


@pytest.mark.parametrize("rest", ["/name?host=one,::2&port=5432,5433", "one,[::2]:5433/name"])
def test_several_servers_may_be_named(rest: str) -> None:
    engine = postgres_engine(f"postgresql://u@{rest}")

    _, options = engine.dialect.create_connect_args(engine.url)
    assert (options["host"], options["port"]) == (["one", "::2"], [5432, 5433])


@pytest.mark.parametrize(
    "rest",
    [
        "postgres@{quoted}:5432/postgres",
        "/postgres?user=postgres&host={folder}",
        "/postgres?user=postgres&host={folder}&connect_timeout=0",
        "{quoted}/?user=postgres&dbname=postgres&password=none&port=5432",
        "nobody:x@{quoted}/none?user=postgres&dbname=postgres",
        "postgres@127.0.0.1:1,{quoted}:5432/postgres?target_session_attrs=read-write",
        "postgres@{quoted}/postgres?client_encoding=utf-8&gssencmode=prefer&channel_binding=prefer&keepalives=1"
        "&keepalives_idle=30&sslmode=disable",
    ],
)
async def test_a_server_is_reached_as_other_tools_write_it(postgres: PostgresProcess, rest: str) -> None:
    folder = str(postgres.socket.parent)

    await reach(f"postgresql://{rest.format(folder=folder, quoted=quote(folder, safe=''))}")


async def test_a_database_that_is_closed_takes_no_calls_until_it_is_opened_again(postgres: PostgresProcess) -> None:
    """A call that began before it was closed may go on with another one, whose connection nobody would close."""
    database = PostgresDatabase(postgres.url)
    await database.open()
    await database.close()

    with pytest.raises(Unavailable, match="was closed"):
        await database.view(lambda connection: connection.scalar(text("SELECT 1")))

    await database.open()
    assert await database.view(lambda connection: connection.scalar(text("SELECT 1"))) == 1
    await database.close()


async def test_options_of_the_server_are_passed_on(postgres: PostgresProcess) -> None:
    database = PostgresDatabase(f"{postgres.url}&options=-c%20lc_time%3DC%20-c%20work_mem%3D7MB")
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("show work_mem")) == "7MB"
    await database.close()

    with pytest.raises(Misconfigured, match=r"unrecognized configuration parameter.*check FIML_DATABASE_URL"):
        await reach(f"{postgres.url}&options=-c%20nonsense%3D1")


async def test_the_authorities_that_the_machine_trusts_are_named_system(
    postgres: PostgresProcess, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_before(postgres.socket, certificates) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslrootcert=system"

        with pytest.raises(Unavailable, match="certificate verify failed"):
            await reach(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.file))
        await reach(url)


async def test_a_transaction_sees_what_was_committed_while_it_waited_whatever_the_databases_default_is(
    postgres: PostgresProcess,
) -> None:
    database = PostgresDatabase(f"{postgres.url}&options=-c%20default_transaction_isolation%3Dserializable")
    level = text("show transaction_isolation")

    await database.view(lambda connection: connection.scalar(level))
    found = await database.transact(lambda connection: connection.scalar(level))
    await database.close()

    assert found == "read committed"
