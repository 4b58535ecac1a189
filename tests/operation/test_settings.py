"""Settings: read from the environment, checked at start, and silent about secrets."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fiml.core.addresses import without_secrets
from fiml.core.config import MarketData, Settings, Synchronous
from fiml.core.errors import Misconfigured
from fiml.sessions.store import SessionStore

SPECIFIED = {
    "session_default_ttl_hours": 24,
    "session_max_ttl_hours": 168,
    "session_cleanup_interval_minutes": 60,
    "session_retention_days": 30,
    "session_max_queries_per_session": 1000,
    "session_enable_analytics": True,
}
BAD = [
    ("FIML_SESSION_DEFAULT_TTL_HOURS", "0"),
    ("FIML_SESSION_DEFAULT_TTL_HOURS", "-1"),
    ("FIML_SESSION_DEFAULT_TTL_HOURS", "a day"),
    ("FIML_SESSION_DEFAULT_TTL_HOURS", "1.5"),
    ("FIML_SESSION_DEFAULT_TTL_HOURS", "169"),
    ("FIML_SESSION_DEFAULT_TTL_HOURS", ""),
    ("FIML_SESSION_MAX_TTL_HOURS", "0"),
    ("FIML_SESSION_MAX_TTL_HOURS", "99999999999999"),
    ("FIML_SESSION_MAX_TTL_HOURS", "inf"),
    ("FIML_SESSION_CLEANUP_INTERVAL_MINUTES", "0"),
    ("FIML_SESSION_RETENTION_DAYS", "0"),
    ("FIML_SESSION_RETENTION_DAYS", "-30"),
    ("FIML_SESSION_MAX_QUERIES_PER_SESSION", "0"),
    ("FIML_SESSION_MAX_QUERIES_PER_SESSION", "many"),
    ("FIML_SESSION_MAX_QUERIES_PER_SESSION", str(2**53)),
    ("FIML_SESSION_MAX_CHANGES", str(2**53)),
    ("FIML_SESSION_MAX_CHANGES", str(10**20)),
    ("FIML_SESSION_ENABLE_ANALYTICS", "perhaps"),
    ("FIML_SESSION_CLEANUP_INTERVAL_MINUTES", "-5"),
    ("FIML_SESSION_CLEANUP_INTERVAL_MINUTES", "1441"),
    ("FIML_SESSION_RETENTION_DAYS", "99999999"),
    ("FIML_DAILY_TASKS_AT", "24:00"),
    ("FIML_DAILY_TASKS_AT", "3 am"),
    ("FIML_DAILY_TASKS_AT", ""),
    ("FIML_DAILY_TASKS_AT", "\u0660\u0663:00"),
    ("FIML_TASK_TIME_LIMIT_MINUTES", "0"),
    ("FIML_TASK_TIME_LIMIT_MINUTES", "60"),
    ("FIML_TASK_VISIBILITY_TIMEOUT_MINUTES", "30"),
    ("FIML_MAINTENANCE", "nobody"),
    ("FIML_BROKER_URL", "localhost:6379"),
    ("FIML_MARKET_DATA", "fake"),
    ("FIML_SQLITE_SYNCHRONOUS", "fast"),
]
BAD_URLS = [
    ("FIML_REDIS_URL", "localhost:6379"),
    ("FIML_REDIS_URL", "http://localhost"),
    ("FIML_DATABASE_URL", "mysql://localhost/db"),
    ("FIML_DATABASE_URL", "sqlite:///file.db"),
    ("FIML_DATABASE_URL", "localhost"),
]
REDIS, DATABASE = "redis://localhost:6379/0", "postgresql://user@localhost/fiml"


def test_the_defaults_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIML_MARKET_DATA")

    settings = Settings()

    assert {name: getattr(settings, name) for name in SPECIFIED} == SPECIFIED
    assert settings.is_embedded
    assert (settings.redis_url, settings.database_url) == (None, None)
    assert settings.market_data is MarketData.AUTO
    assert settings.sqlite_synchronous is Synchronous.FULL


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FIML_SESSION_DEFAULT_TTL_HOURS", "48", {"session_default_ttl_hours": 48}),
        ("FIML_SESSION_MAX_TTL_HOURS", "24", {"session_max_ttl_hours": 24}),
        ("FIML_SESSION_ENABLE_ANALYTICS", "false", {"session_enable_analytics": False}),
        ("FIML_SESSION_ENABLE_ANALYTICS", "0", {"session_enable_analytics": False}),
        ("FIML_MARKET_DATA", "sample", {"market_data": MarketData.SAMPLE}),
        ("FIML_DATA_DIR", "/somewhere/else", {"data_dir": Path("/somewhere/else")}),
        ("FIML_REDIS_URL", "", {"redis_url": None}),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: dict[str, Any]
) -> None:
    monkeypatch.setenv(variable, value)

    settings = Settings()

    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(("variable", "value"), BAD + BAD_URLS)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    if (variable, value) in BAD_URLS:
        monkeypatch.setenv("FIML_REDIS_URL", REDIS)
        monkeypatch.setenv("FIML_DATABASE_URL", DATABASE)
    monkeypatch.setenv(variable, value)

    with pytest.raises(Misconfigured, match=variable):
        Settings()


def test_every_bad_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("FIML_SESSION_RETENTION_DAYS", "0"), ("FIML_MARKET_DATA", "fake")):
        monkeypatch.setenv(variable, value)

    with pytest.raises(Misconfigured, match=r"(?s)FIML_SESSION_RETENTION_DAYS.*FIML_MARKET_DATA"):
        Settings()


def test_what_would_be_valid_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_MARKET_DATA", "fake")

    with pytest.raises(Misconfigured, match="'sample', 'live' or 'auto'"):
        Settings()


def test_the_default_life_is_at_most_the_longest() -> None:
    with pytest.raises(Misconfigured, match="FIML_SESSION_DEFAULT_TTL_HOURS"):
        Settings(session_default_ttl_hours=25, session_max_ttl_hours=24)


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"redis_url": REDIS}, "FIML_DATABASE_URL"), ({"database_url": DATABASE}, "FIML_REDIS_URL")],
)
def test_one_url_alone_is_refused_and_the_other_named(given: dict[str, str], missing: str) -> None:
    with pytest.raises(Misconfigured, match=f"{missing} is not set"):
        Settings(**given)


@pytest.mark.parametrize("redis_url", [REDIS, "rediss://user:word@host/1", "unix:///run/valkey.sock?db=1"])
@pytest.mark.parametrize(
    "database_url", [DATABASE, "postgres://localhost/fiml", "postgresql://user@/name?host=/socket/folder"]
)
def test_both_urls_make_the_server_deployment(redis_url: str, database_url: str) -> None:
    assert not Settings(redis_url=redis_url, database_url=database_url).is_embedded


KEY = "7ZkN3+w/0mQ2rV8uXyB1cD4eF5gH6iJ7kL8mN9oP0qQ="  # nobody's


@pytest.mark.parametrize("value", [KEY, f"k1:{KEY}", f"*k1:{KEY}", KEY.replace("+", "-").replace("/", "_")])
def test_a_key_in_the_place_of_its_file_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_ENCRYPTION_KEYS", value)

    with pytest.raises(Misconfigured, match="FIML_ENCRYPTION_KEYS: holds a key itself") as refused:
        Settings()
    assert KEY[8:20] not in str(refused.value)


@pytest.mark.parametrize("command", ["doctor", "keys new", "sessions list"])
def test_no_command_shows_such_a_key(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_ENCRYPTION_KEYS", KEY)

    ended = subprocess.run(
        [sys.executable, "-m", "fiml", *command.split()], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert "holds a key itself" in ended.stdout + ended.stderr
    assert KEY[8:20] not in ended.stdout + ended.stderr


@pytest.mark.parametrize("path", ["keys", "/run/secrets/keys", "~/.config/fiml/keys", "C:\\keys", "k1:short="])
def test_a_path_is_not_a_key(path: str) -> None:
    assert str(Settings(encryption_keys=path).encryption_keys).endswith(path.removeprefix("~"))


def test_a_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("FIML_DATA_DIR", "FIML_ENCRYPTION_KEYS", "FIML_AUTH_JWKS"):
        monkeypatch.setenv(variable, "~/fiml")

    settings = Settings(auth_issuer="https://issuer.example", auth_audience="fiml")

    assert (settings.data_dir, settings.encryption_keys) == (tmp_path / "fiml", tmp_path / "fiml")
    assert settings.auth_jwks == str(tmp_path / "fiml")


def test_a_file_in_a_folder_that_is_called_tilde_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """fiml 0.3 didn't expand it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    left_behind = tmp_path / "~" / "fiml" / "fiml.db"
    left_behind.parent.mkdir(parents=True)
    left_behind.touch()

    with pytest.raises(Misconfigured, match=f"FIML_DATA_DIR: {left_behind} .* move it to {tmp_path}/home/fiml"):
        Settings(data_dir="~/fiml")
    left_behind.rename(tmp_path / "fiml.db")
    assert Settings(data_dir="~/fiml").embedded_file == tmp_path / "home" / "fiml" / "fiml.db"


def test_a_relative_path_stays_the_same_if_the_program_changes_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store that was opened again, or keys that were read again, were others, or none."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir="fiml", encryption_keys="keys")

    monkeypatch.chdir("/")

    assert settings.embedded_file == tmp_path / "fiml" / "fiml.db"
    assert settings.encryption_keys == tmp_path / "keys"


def test_a_relative_path_in_a_folder_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    with pytest.raises(Misconfigured, match="FIML_DATA_DIR: is relative to the current folder, which is gone"):
        Settings(data_dir="fiml")
    assert Settings(data_dir=tmp_path).data_dir == tmp_path


def test_a_home_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(Misconfigured, match="FIML_DATA_DIR: begins with ~"):
        Settings(data_dir="~nobody-of-this-name/fiml")


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(Misconfigured, match="session_ttl"):
        Settings(session_ttl=5)


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        redis_url="redis://user:s3cret@host/0",
        database_url="postgresql://user:s3cret@host/db",
        broker_url="amqp://user:s3cret@host",
        auth_issuer="https://host",
        auth_audience="fiml",
        auth_jwks="https://user:s3cret@host/keys",
    )

    assert "s3cret" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FIML_REDIS_URL", "http://user:s3cret@host"), ("FIML_DATABASE_URL", "mysql://user:s3cret@host/db")],
)
def test_secrets_are_not_in_an_error(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(Misconfigured) as raised:
        Settings()

    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:s3cret@host:6379/0", "redis://host:6379/0"),
        ("postgresql://user:s3@cret@host/db?password=s3cret", "postgresql://host/db"),
        ("unix:///run/valkey.sock?password=s3cret", "unix:///run/valkey.sock"),
        ("postgresql:///db?user=me&password=s3@cret", "postgresql://***"),
        ("redis://user:s3?cret@host", "redis://***"),
        ("redis://host", "redis://host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_settings_do_not_change() -> None:
    settings = Settings()

    with pytest.raises(Exception, match="frozen"):
        settings.session_retention_days = 5  # type: ignore[misc]  # that is the point


def test_the_file_lies_in_the_folder_that_is_set(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).embedded_file.parent == tmp_path


def test_without_a_folder_the_file_lies_in_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIML_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    assert tmp_path in Settings().embedded_file.parents


async def test_the_default_life_reaches_the_store(tmp_path: Path) -> None:
    async with SessionStore(Settings(data_dir=tmp_path, session_default_ttl_hours=3)) as store:
        session = await store.create_session(["AAPL"], "equity")

    assert session.expires_at - session.created_at == timedelta(hours=3)


@pytest.mark.parametrize("name", ["https://fiml.example", "fiml.example/mcp", "two words"])
def test_a_host_that_no_request_could_name_is_refused(name: str) -> None:
    assert Settings(http_hosts="fiml.example, fiml.example:8443,[::1]").hosts[1] == "fiml.example:8443"

    with pytest.raises(Misconfigured, match="FIML_HTTP_HOSTS: must be host names"):
        Settings(http_hosts=name)
