"""`fiml doctor`: what is configured, what is reachable, what is wrong and what to do about it. Changes nothing."""

import asyncio
import os
import platform
import shutil
import sys
import textwrap
from datetime import datetime, timedelta
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fiml import __version__
from fiml.cli.checks import MARK_CHARACTERS, Check, Mark, authentication, newest_session, or_problem, quarantine
from fiml.core import clock
from fiml.core.addresses import without_secrets
from fiml.core.config import DATABASE_SCHEMES, REDIS_SCHEMES, MarketData, Settings, is_a_key, variable
from fiml.core.errors import FimlError, Misconfigured
from fiml.core.tracing import wanted_exporter

if TYPE_CHECKING:  # loaded by the command, not by every start of the command line
    from fiml.db.health import PostgresFacts, RedisFacts, SchemaFacts

EXTRAS = {
    "server": ("redis", "hiredis", "asyncpg", "celery"),
    "yahoo": ("yfinance", "exchange_calendars", "stamina", "aiolimiter"),
    "ccxt": ("ccxt", "stamina", "aiolimiter"),
    "parquet": ("pyarrow",),
    "pandas": ("pandas",),
    "polars": ("polars",),
    "metrics": ("prometheus_client",),
    "tracing": ("opentelemetry.sdk", "opentelemetry.exporter"),
    "testing": ("hypothesis", "pytest", "pytest_asyncio"),
}
CLOCKS_APART_S = 2.0
MOST_MEMORY = 0.85
LEAST_SPACE_BYTES = 64 * 1024**2


def doctor() -> None:
    """Check the configuration and the databases, and say what to do about each problem."""
    checks = asyncio.run(examine())
    for check in checks:
        typer.echo(_fitted(str(check)))
    count = sum(check.mark is Mark.PROBLEM for check in checks)
    typer.echo("no problems" if count == 0 else f"{count} problem{'s' if count > 1 else ''}")
    if count:
        raise typer.Exit(1)


async def examine() -> list[Check]:
    """Check everything. A part that can't be checked is a problem; the others are checked all the same."""
    versions = Check(Mark.OK, "fiml", f"{__version__} on Python {platform.python_version()}")
    try:
        settings = Settings()
        configured = _deployment(settings)
    except Misconfigured as exc:
        settings = _settings_as_far_as_possible()
        configured = Check(Mark.PROBLEM, "settings", str(exc))
    stored = [*await _databases(settings), *_encryption(settings)]
    if _current_schema() in stored and not any(check.mark is Mark.PROBLEM for check in (configured, *stored)):
        stored += await newest_session(settings)
    return [
        versions,
        *_misspelt(),
        configured,
        *stored,
        *authentication(settings),
        *_extras(settings),
        *_market(settings),
    ]


def _fitted(line: str) -> str:
    """A line, wrapped if it goes to a terminal."""
    if not sys.stdout.isatty():
        return line
    return textwrap.fill(
        line,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * MARK_CHARACTERS,
        break_long_words=False,  # paths stay whole, so that they can be copied
        break_on_hyphens=False,
    )


def _environment() -> dict[str, str]:
    """The variables of fiml, with their names in upper case; like the settings, this ignores case."""
    return {name.upper(): value for name, value in os.environ.items() if name.upper().startswith("FIML_")}


def _misspelt() -> list[Check]:
    known = [variable(field) for field in Settings.model_fields]
    return [
        Check(Mark.PROBLEM, name, "is not a setting and has no effect", _nearest(name, known))
        for name in sorted(_environment())
        # FIML_TEST_ variables name servers for the tests.
        if name not in known and not name.startswith("FIML_TEST_")
    ]


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "unset it"


def _settings_as_far_as_possible() -> Settings:
    """The settings that are usable on their own, although the settings as a whole are not valid."""
    given = _environment()
    redis_url, database_url = given.get("FIML_REDIS_URL", ""), given.get("FIML_DATABASE_URL", "")
    folder, market = given.get("FIML_DATA_DIR"), given.get("FIML_MARKET_DATA", "")
    keys = given.get("FIML_ENCRYPTION_KEYS")
    return Settings.model_construct(
        redis_url=redis_url if redis_url.startswith(REDIS_SCHEMES) else None,
        database_url=database_url if database_url.startswith(DATABASE_SCHEMES) else None,
        data_dir=_path(folder) if folder else None,
        market_data=MarketData(market) if market in set(MarketData) else MarketData.AUTO,
        encryption_keys=_path(keys) if keys and not is_a_key(keys) else None,
    )


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - unlike pathlib, leaves what it can't expand


def _deployment(settings: Settings) -> Check:
    if settings.is_embedded:
        return Check(Mark.OK, "deployment", "embedded, everything in one file")
    return Check(Mark.OK, "deployment", "server, live sessions in Redis and archived ones in PostgreSQL")


def _encryption(settings: Settings) -> list[Check]:
    if settings.encryption_keys is None:
        return []
    from fiml.sessions.keyring import KeyFile  # noqa: PLC0415 - off by default

    try:
        keyring = KeyFile(settings.encryption_keys).keyring()
    except Misconfigured as exc:
        return [Check(Mark.PROBLEM, "encryption", str(exc))]
    count = "1 key" if len(keyring.keys) == 1 else f"{len(keyring.keys)} keys"
    return [Check(Mark.OK, "encryption", f"{count}, the current one is {keyring.current.id}")]


async def _databases(settings: Settings) -> list[Check]:
    probes = []
    if settings.redis_url is not None:
        probes.append(_redis(settings, settings.redis_url))
    if settings.database_url is not None:
        probes.append(_postgres(settings.database_url, settings.expected_replicas))
    if not probes:
        probes.append(_file(settings))
    return [check for checks in await asyncio.gather(*probes) for check in checks]


async def _redis(settings: Settings, url: str) -> list[Check]:
    from fiml.db.health import redis_facts  # noqa: PLC0415 - only this command needs it
    from fiml.sessions.backends.redis.keys import expiry_keys  # noqa: PLC0415 - as above

    facts = await or_problem("Redis", "FIML_REDIS_URL", redis_facts(settings, expiry_keys=expiry_keys()))
    if isinstance(facts, Check):
        return [facts]
    server = f"{facts.name} {facts.version or 'of unknown version'}"
    if facts.masters > 1:
        server += f" with {facts.masters} masters"
    return [
        Check(Mark.OK, "Redis", f"{without_secrets(url)} is reachable, {server}, {facts.latency_ms:.1f} ms"),
        _eviction(facts),
        *_memory(facts),
        _durability(facts),
        *_clock_and_replicas(facts, *_expected_in_redis(settings)),
        _backlog(facts.most_waiting, facts.oldest_waiting, settings.session_cleanup_interval_minutes, is_exact=False),
    ]


def _expected_in_redis(settings: Settings) -> tuple[int, str]:
    waited_for = settings.redis_wait_replicas, "FIML_REDIS_WAIT_REPLICAS"
    return max((settings.expected_replicas, "FIML_EXPECTED_REPLICAS"), waited_for, key=lambda each: each[0])


def _eviction(facts: "RedisFacts") -> Check:
    subject = f"{facts.name} maxmemory-policy"
    if facts.eviction_policy is None:
        return Check(Mark.NOTE, subject, "unknown, as the server doesn't report it", "make sure that it is noeviction")
    if facts.eviction_policy == "noeviction":
        return Check(Mark.OK, subject, "noeviction")
    finding = f"{facts.eviction_policy} may drop sessions when memory is short"
    return Check(Mark.NOTE, subject, finding, "set maxmemory-policy to noeviction")


def _memory(facts: "RedisFacts") -> list[Check]:
    share = facts.memory_share
    if share is None or share < MOST_MEMORY:
        return []
    subject, remedy = f"{facts.name} memory", "raise maxmemory, shorten the TTL, or run `fiml sessions sweep`"
    if share < 1:
        return [Check(Mark.NOTE, subject, f"{share:.0%} of maxmemory is used", remedy)]
    return [Check(Mark.PROBLEM, subject, f"{share:.0%} of maxmemory is used, so writes are refused", remedy)]


def _durability(facts: "RedisFacts") -> Check:
    subject = f"{facts.name} append-only file"
    if facts.is_append_only is None:
        return Check(Mark.NOTE, subject, "unknown, as the server doesn't report it", "make sure that appendonly is yes")
    if facts.is_append_only:
        return Check(Mark.OK, subject, "on")
    finding = "off, so a crash of the server may lose live sessions"
    return Check(Mark.NOTE, subject, finding, "set appendonly to yes")


async def _postgres(url: str, expected_replicas: int) -> list[Check]:
    from fiml.db.health import postgres_facts  # noqa: PLC0415 - only this command needs it

    facts = await or_problem("PostgreSQL", "FIML_DATABASE_URL", postgres_facts(url))
    if isinstance(facts, Check):
        return [facts]
    server = f"{facts.name} {facts.version}"
    return [
        Check(Mark.OK, "PostgreSQL", f"{without_secrets(url)} is reachable, {server}, {facts.latency_ms:.1f} ms"),
        *_clock_and_replicas(facts, expected_replicas, "FIML_EXPECTED_REPLICAS"),
        _schema(facts.schema, outdated=Mark.PROBLEM, upgrade="run `fiml db upgrade`"),
        *quarantine(facts.quarantined),
    ]


def _clock_and_replicas(facts: "RedisFacts | PostgresFacts", expected: int, name: str) -> list[Check]:
    checks = []
    if facts.ahead_s is not None:
        checks.append(_clock(f"{facts.name} clock", facts.ahead_s))
    if expected:
        checks.append(_replicas(f"{facts.name} replicas", facts.replicas, expected, name))
    return checks


def _clock(subject: str, ahead_s: float) -> Check:
    if abs(ahead_s) <= CLOCKS_APART_S:
        return Check(Mark.OK, subject, "agrees with this machine's")
    finding = f"{abs(ahead_s):.0f} seconds {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    return Check(Mark.NOTE, subject, finding, "synchronize both clocks with NTP, for example with chrony")


def _replicas(subject: str, found: int | None, expected: int, name: str) -> Check:
    if found is None:
        return Check(Mark.NOTE, subject, "unknown, as the server doesn't report it")
    if found >= expected:
        return Check(Mark.OK, subject, str(found))
    finding = f"{found}, but {name} is {expected}"
    return Check(Mark.NOTE, subject, finding, "start the missing ones, or find out why they don't replicate")


async def _file(settings: Settings) -> list[Check]:
    from fiml.db.health import can_write, sqlite_facts  # noqa: PLC0415 - only this command needs it

    try:
        path = settings.embedded_file
    except Misconfigured as exc:
        return [Check(Mark.PROBLEM, "file", str(exc))]
    facts = await or_problem("file", "FIML_DATA_DIR", sqlite_facts(path))
    if isinstance(facts, Check):
        return [facts]
    writable = Check(Mark.OK, "folder", f"{path.parent} is writable")
    if not can_write(path):
        writable = Check(
            Mark.PROBLEM,
            "folder",
            f"{path.parent}, or the file in it, is not writable",
            "change its permissions, or set FIML_DATA_DIR to a writable folder",
        )
    rest = [writable, *_space(path)]
    if facts is None:
        return [Check(Mark.OK, "file", f"{path} doesn't exist yet, it is created at first use"), *rest]
    size_mib = facts.size_bytes / 1024**2
    return [
        Check(
            Mark.OK,
            "file",
            f"{path}, {size_mib:.1f} MiB, {facts.name} {facts.version}, read in {facts.latency_ms:.1f} ms",
        ),
        *rest,
        _schema(facts.schema, outdated=Mark.NOTE, upgrade="it is upgraded at next use"),
        _backlog(facts.waiting, facts.oldest_waiting, settings.session_cleanup_interval_minutes, is_exact=True),
        *quarantine(facts.quarantined),
    ]


def _space(path: Path) -> list[Check]:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free >= LEAST_SPACE_BYTES:
        return []
    finding = f"{free / 1024**2:.0f} MiB are left on the disk of {folder}"
    return [Check(Mark.PROBLEM, "disk", finding, "make room, or set FIML_DATA_DIR to a folder on another disk")]


def _schema(facts: "SchemaFacts", *, outdated: Mark, upgrade: str) -> Check:
    from fiml.db.health import SchemaState  # noqa: PLC0415 - only this command needs it
    from fiml.db.schema import REVISIONS  # noqa: PLC0415 - as above

    match facts.state:
        case SchemaState.NONE:
            return Check(Mark.OK, "schema", "none yet, it is created at first use")
        case SchemaState.OUTDATED:
            return Check(outdated, "schema", f"{facts.revision} is outdated, this fiml needs {REVISIONS[-1]}", upgrade)
        case SchemaState.NEWER:
            finding = f"{facts.revision} is later than {REVISIONS[-1]}, the latest that this fiml supports"
            return Check(Mark.PROBLEM, "schema", finding, "install a newer fiml")
    return _current_schema()


def _current_schema() -> Check:
    from fiml.db.schema import REVISIONS  # noqa: PLC0415 - only this command needs it

    return Check(Mark.OK, "schema", f"{REVISIONS[-1]}, current")


def _backlog(waiting: int | None, oldest: datetime | None, interval_minutes: int, *, is_exact: bool) -> Check:
    from fiml.sessions.maintenance import is_sweep_late  # noqa: PLC0415 - only this command needs it

    if waiting is None:
        return Check(Mark.NOTE, "backlog", "unknown, as the server doesn't report it")
    if waiting == 0:
        return Check(Mark.OK, "backlog", "no expired session is waiting to be archived")
    finding = (
        f"{'' if is_exact else 'at most '}{waiting} expired session{'s' if waiting > 1 else ''} waiting to be archived"
    )
    if oldest is not None and is_sweep_late(oldest, interval_minutes):
        waits = _rough(clock.now() - oldest)
        finding += f", the oldest for {waits}: no sweep has run for that long, and the backlog grows"
        return Check(
            Mark.NOTE, "backlog", finding, "check that `fiml serve` or a worker runs; `fiml sessions sweep` sweeps now"
        )
    remedy = f"`fiml serve` sweeps every {interval_minutes} minutes while it runs, `fiml sessions sweep` sweeps now"
    return Check(Mark.NOTE, "backlog", finding, remedy)


def _rough(duration: timedelta) -> str:
    minutes = int(duration.total_seconds() // 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"


def _extras(settings: Settings) -> list[Check]:
    is_server_needed = settings.redis_url is not None or settings.database_url is not None
    return [
        _extra("server", is_needed=is_server_needed, purpose="FIML_REDIS_URL and FIML_DATABASE_URL need it"),
        _extra("yahoo", is_needed=False, purpose="live stocks, funds and indices need it"),
        _extra("ccxt", is_needed=False, purpose="live coins need it"),
        _extra(
            "metrics",
            is_needed=settings.metrics_address is not None,
            purpose="FIML_METRICS_ADDRESS needs it",
        ),
        _extra(
            "tracing",
            is_needed=wanted_exporter() is not None,
            purpose="the OTEL_ variables for tracing need it",
            mark=Mark.NOTE,  # they may be meant for other programs
        ),
        *(
            _extra(each, is_needed=False, purpose="exports or data frames need it")
            for each in ("parquet", "pandas", "polars")
        ),
        _extra("testing", is_needed=False, purpose="only tests that use fiml.testing need it"),
    ]


def _extra(name: str, *, is_needed: bool, purpose: str, mark: Mark = Mark.PROBLEM) -> Check:
    missing = [module for module in EXTRAS[name] if find_spec(module) is None]
    if not missing:
        return Check(Mark.OK, f"extra [{name}]", "installed")
    finding = f"not installed ({', '.join(missing)} missing)"
    if is_needed:
        return Check(mark, f"extra [{name}]", f"{finding}, but {purpose}", f"pip install 'fiml[{name}]'")
    return Check(Mark.OK, f"extra [{name}]", f"{finding}, and not needed here")


def _market(settings: Settings) -> list[Check]:
    from fiml.market.service import market_source  # noqa: PLC0415 - only this command needs it

    if _environment().get("FIML_MARKET_DATA", settings.market_data) != settings.market_data:
        return []  # the value isn't valid, which the check of the settings reports
    try:
        source = market_source(settings)
    except FimlError as exc:
        return [Check(Mark.PROBLEM, "market data", str(exc))]
    return [Check(Mark.OK, "market data", f"{source} (FIML_MARKET_DATA is {settings.market_data})")]
