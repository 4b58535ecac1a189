"""Settings, read from the environment and checked at start."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fiml.core.addresses import host_in, split_address
from fiml.core.errors import Misconfigured, echo

REDIS_SCHEMES = (
    *("redis://", "rediss://", "unix://"),
    *("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://"),
)
DATABASE_SCHEMES = ("postgresql://", "postgres://")
BROKER_SCHEMES = (
    *("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://"),
    *("amqp://", "amqps://"),
)
# Asymmetric algorithms only: with a shared secret, whoever can verify can also sign.
SIGNATURE_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
EMBEDDED_FILE = "fiml.db"
MAX_TTL_HOURS = 24 * 365 * 10
MAX_TASK_MINUTES = 24 * 60
MAX_RETENTION_DAYS = 365 * 100
MAX_COUNT = (1 << 53) - 1  # Redis counts in double precision, SQL in 64 bits

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
_HOST = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")


class MarketData(StrEnum):
    """Where market figures come from; sample and live are never mixed in one run."""

    SAMPLE = "sample"
    LIVE = "live"
    AUTO = "auto"


class Maintenance(StrEnum):
    """Who archives and tidies up: the processes of `fiml serve`, or a Celery worker."""

    SERVE = "serve"
    WORKER = "worker"


class LogFormat(StrEnum):
    """How a log line is written: for people, or for programs that collect logs."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Synchronous(StrEnum):
    """SQLite's `synchronous` level: writes survive a power cut with `full`; `normal` and `off` trade that for speed."""

    FULL = "full"
    NORMAL = "normal"
    OFF = "off"


class Settings(BaseSettings):
    """All settings. A field is set by the environment variable `FIML_` plus its upper-case name.

    Raises:
        Misconfigured: a value is out of bounds; the message names the variable and what would be valid.
    """

    model_config = SettingsConfigDict(env_prefix="FIML_", extra="forbid", frozen=True, hide_input_in_errors=True)

    session_default_ttl_hours: PositiveInt = Field(24, description="lifetime of a session created without a TTL, hours")
    session_max_ttl_hours: int = Field(168, ge=1, le=MAX_TTL_HOURS, description="longest lifetime from now, hours")
    session_cleanup_interval_minutes: int = Field(
        60, ge=1, le=MAX_TASK_MINUTES, description="time between two sweeps, minutes"
    )
    session_retention_days: int = Field(
        30, ge=1, le=MAX_RETENTION_DAYS, description="archived sessions are kept this long, days"
    )
    session_max_queries_per_session: Count = Field(1000, description="most queries in one session")
    session_max_changes: Count = Field(100_000, description="most changes to one session, each in its audit trail")
    session_smart_ttl: bool = Field(default=False, description="whether writing to a session near its end extends it")
    session_enable_analytics: bool = Field(
        default=True, description="whether a session's metrics are written when it ends"
    )

    redis_url: str | None = Field(None, repr=False, description="Redis or Valkey for live sessions")
    redis_prefix: str = Field("fiml", description="prefix of each key's name in Redis")
    redis_wait_replicas: int = Field(
        0, ge=0, le=10, description="replicas of Redis that must have a write before it is acknowledged"
    )
    database_url: str | None = Field(None, repr=False, description="PostgreSQL for ended sessions")
    data_dir: Path | None = Field(None, description="folder of the embedded file; default: the user's data folder")
    sqlite_synchronous: Synchronous = Field(Synchronous.FULL, description="durability of the embedded file")
    encryption_keys: Path | None = Field(None, description="file of the keys that encrypt values at rest")
    installation: str = Field("fiml", description="name to which encrypted values are bound")
    market_data: MarketData = Field(MarketData.AUTO, description="`sample`, `live` or `auto`")
    market_max_stale_hours: int = Field(
        24,
        ge=0,
        le=24 * 30,
        description="how long a failing source's last answer is still given after it expired, hours",
    )

    maintenance: Maintenance = Field(Maintenance.SERVE, description="who archives and tidies up: `serve` or `worker`")
    daily_tasks_at: str = Field("03:00", description="when the daily tasks run, hours and minutes in UTC")
    task_time_limit_minutes: int = Field(
        30, ge=1, le=MAX_TASK_MINUTES, description="a Celery task is ended after this long, minutes"
    )
    task_visibility_timeout_minutes: int = Field(
        60,
        ge=2,
        le=2 * MAX_TASK_MINUTES,
        description="an unfinished task is delivered again after this long, minutes",
    )
    auth_issuer: str | None = Field(None, description="issuer of the bearer tokens (`iss`), a URL")
    auth_audience: str | None = Field(None, description="audience that the tokens must name (`aud`)")
    auth_jwks: str | None = Field(None, repr=False, description="the issuer's keys: an https URL, or a file")
    auth_algorithms: str = Field("RS256,ES256,EdDSA", description="accepted signature algorithms, separated by commas")
    auth_leeway_seconds: int = Field(30, ge=0, le=300, description="how far clocks may differ, seconds")
    auth_tokens: bool = Field(default=False, description="whether tokens made by `fiml token new` are accepted")
    http_hosts: str | None = Field(
        None, description="host names under which HTTP is reached from outside, separated by commas"
    )
    public_url: str | None = Field(None, description="where clients reach `/mcp`, for the resource metadata")
    http_rate_per_minute: int = Field(
        600, ge=0, le=60_000, description="calls that a principal may make on HTTP per minute; 0 is unlimited"
    )
    http_rate_burst: int = Field(100, ge=1, le=10_000, description="calls that a principal may make at once")

    broker_url: str | None = Field(None, repr=False, description="Celery's broker, if it isn't FIML_REDIS_URL")

    log_format: LogFormat = Field(LogFormat.TEXT, description="format of log lines: `text` or `json`")
    log_level: LogLevel = Field(LogLevel.INFO, description="lowest level that is logged")
    metrics_address: str | None = Field(None, description="where `/metrics` is served, HOST:PORT; default: nowhere")
    expected_replicas: int = Field(0, ge=0, le=100, description="replicas that each engine should have")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise Misconfigured(_explain(exc)) from None

    @field_validator(
        *("redis_url", "database_url", "broker_url", "data_dir", "encryption_keys"),
        *("auth_issuer", "auth_audience", "auth_jwks", "public_url", "metrics_address"),
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(REDIS_SCHEMES):
            raise ValueError(f"must begin with {', '.join(REDIS_SCHEMES)}")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(DATABASE_SCHEMES):
            raise ValueError("must begin with postgresql://")
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(BROKER_SCHEMES):
            raise ValueError(f"must begin with {', '.join(BROKER_SCHEMES)}")
        return value

    @field_validator("data_dir")
    @classmethod
    def _data_at_home(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        folder = _expanded(value)
        left_behind = value / EMBEDDED_FILE
        # fiml 0.3 took ~ for the name of a folder: the sessions in it must not seem lost.
        if str(value).startswith("~") and _is_there(left_behind) and not _is_there(folder / EMBEDDED_FILE):
            raise ValueError(
                f"{left_behind.absolute()} holds the sessions of an older fiml, which took ~ literally; "
                f"move it to {folder}"
            )
        return folder

    @field_validator("encryption_keys")
    @classmethod
    def _file_of_keys(cls, value: Path | None) -> Path | None:
        if value is not None and is_a_key(str(value)):
            # Errors show the name of the file, and would show the key.
            raise ValueError("holds a key itself; put the key into a file, and give the file's path")
        return None if value is None else _expanded(value)

    @field_validator("installation", "redis_prefix")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
            raise ValueError("must have 1 to 64 characters: letters, digits, _ . -")
        return value

    @field_validator("http_hosts")
    @classmethod
    def _host_names(cls, value: str | None) -> str | None:
        if not all(_HOST.fullmatch(name) for name in _listed(value or "")):
            raise ValueError("must be host names separated by commas, without scheme or path")
        return value

    @field_validator("daily_tasks_at")
    @classmethod
    def _time_of_day(cls, value: str) -> str:
        if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
            raise ValueError("must be a time of day in UTC, from 00:00 to 23:59")
        return value

    @field_validator("metrics_address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("auth_algorithms")
    @classmethod
    def _asymmetric(cls, value: str) -> str:
        unknown = [name for name in _listed(value) if name not in SIGNATURE_ALGORITHMS]
        if unknown or not _listed(value):
            raise ValueError(f"must be some of {', '.join(SIGNATURE_ALGORITHMS)}, separated by commas")
        return value

    @field_validator("auth_issuer", "public_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith(("https://", "http://")) or not host_in(value)):
            raise ValueError(
                "must begin with https:// (or http:// on this machine), and name a host; a port is 1 to 65535"
            )
        return value

    @field_validator("auth_audience")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value

    @field_validator("auth_jwks")
    @classmethod
    def _keys(cls, value: str | None) -> str | None:
        if value is None or "://" not in value:
            return None if value is None else str(_expanded(Path(value)))
        is_local = value.startswith("http://") and host_in(value) in {"127.0.0.1", "localhost", "::1"}
        if not is_local and not (value.startswith("https://") and host_in(value)):
            raise ValueError("must be a file, or begin with https:// and name a host; a port is 1 to 65535")
        return value

    @model_validator(mode="after")
    def _signed_tokens(self) -> Self:
        given = [self.auth_issuer, self.auth_audience, self.auth_jwks]
        if any(given) and not all(given):
            raise ValueError("FIML_AUTH_ISSUER, FIML_AUTH_AUDIENCE and FIML_AUTH_JWKS go together: set all or none")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.session_default_ttl_hours > self.session_max_ttl_hours:
            raise ValueError(
                "FIML_SESSION_DEFAULT_TTL_HOURS must be at most FIML_SESSION_MAX_TTL_HOURS "
                f"({self.session_max_ttl_hours})"
            )
        if self.task_visibility_timeout_minutes <= self.task_time_limit_minutes:
            raise ValueError(
                "FIML_TASK_VISIBILITY_TIMEOUT_MINUTES must be greater than FIML_TASK_TIME_LIMIT_MINUTES "
                f"({self.task_time_limit_minutes})"
            )
        if (self.redis_url is None) != (self.database_url is None):
            missing = "FIML_REDIS_URL" if self.redis_url is None else "FIML_DATABASE_URL"
            raise ValueError(
                f"{missing} is not set: set both FIML_REDIS_URL and FIML_DATABASE_URL for the server deployment, "
                "neither for the embedded one"
            )
        return self

    @property
    def is_authenticated(self) -> bool:
        """Whether HTTP accepts bearer tokens, and refuses callers without one."""
        return self.auth_tokens or self.auth_issuer is not None

    @property
    def signature_algorithms(self) -> list[str]:
        """The signature algorithms that are accepted."""
        return _listed(self.auth_algorithms)

    @property
    def hosts(self) -> list[str]:
        """The names under which HTTP is reached from outside, in lower case, as clients send them."""
        return _listed((self.http_hosts or "").lower())

    @property
    def is_embedded(self) -> bool:
        """Whether everything lives in one SQLite file."""
        return self.redis_url is None

    @property
    def paths(self) -> dict[str, Path]:
        """The paths that are set, by field."""
        found = {"data_dir": self.data_dir, "encryption_keys": self.encryption_keys}
        if self.auth_jwks is not None and "://" not in self.auth_jwks:
            found["auth_jwks"] = Path(self.auth_jwks)
        return {field: path for field, path in found.items() if path is not None}

    @property
    def embedded_file(self) -> Path:
        """The SQLite file of the embedded deployment.

        Raises:
            Misconfigured: no folder is set, and the user has no home folder.
        """
        return (self.data_dir or _user_data_folder()) / EMBEDDED_FILE


def _expanded(path: Path) -> Path:
    # Started by a client, an .env file or systemd, there is no shell that would expand the path. Absolute, it stays the
    # same if the program changes its folder, as notebooks do.
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~, but there is no such home folder; give the full path") from None
    except FileNotFoundError:
        raise ValueError("is relative to the current folder, which is gone; give the full path") from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way can't be entered
        return False


def _listed(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


def variable(field: str) -> str:
    """The environment variable that sets a field."""
    return "FIML_" + field.upper()


def is_a_key(text: str) -> bool:
    """Whether a text is a key (32 bytes in BASE64, with or without its name in front) rather than a path."""
    return re.fullmatch(r"(\*?[\w.-]+:)?[A-Za-z0-9+/_-]{43}=", text) is not None


def _user_data_folder() -> Path:
    from platformdirs import user_data_path  # noqa: PLC0415 - not needed if a folder is set

    try:
        return user_data_path("fiml", appauthor=False).expanduser()
    except RuntimeError:
        raise Misconfigured("this user has no home folder to keep the data in; set FIML_DATA_DIR") from None


def _explain(exc: ValidationError) -> str:
    problems = []
    for error in exc.errors(include_url=False, include_context=False):
        problem = error["msg"].removeprefix("Value error, ")
        name = str(error["loc"][0]) if error["loc"] else None
        if error["type"] == "extra_forbidden":
            problems.append(f"{echo(name)} is not a setting; valid names are {', '.join(Settings.model_fields)}")
        else:
            problems.append(f"{variable(name)}: {problem}" if name else problem)
    return "; ".join(problems)
