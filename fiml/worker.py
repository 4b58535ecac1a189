"""The Celery app and its beat schedule. The broker is Redis, unless `FIML_BROKER_URL` names another one."""

import logging
import ssl
import tempfile
from datetime import time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from celery import Celery
from celery.bin.celery import celery
from celery.schedules import crontab
from celery.signals import setup_logging

from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, Unavailable
from fiml.core.tracing import tracing
from fiml.metrics.exposing import exposing_worker

if TYPE_CHECKING:  # redis-py, which another broker doesn't need
    from fiml.db.redis_url import RedisAddress

QUEUE = "fiml"
_CERTIFICATE = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def make_app(settings: Settings) -> Celery:
    """The app of an installation. Without a broker, it can only run tasks in the same process."""
    app = Celery("fiml")
    broker = _broker(settings)
    minutes = 60
    visibility = {"visibility_timeout": settings.task_visibility_timeout_minutes * minutes}
    app.conf.update(
        **(_amqp(broker) if broker is None or broker.startswith("amqp") else _redis(broker, settings, visibility)),
        result_expires=timedelta(days=1),
        imports=("fiml.sessions.tasks",),
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        result_serializer="json",
        timezone="UTC",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_track_started=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        task_time_limit=settings.task_time_limit_minutes * minutes,
        task_soft_time_limit=settings.task_time_limit_minutes * minutes - minutes // 2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        beat_schedule=beat_schedule(settings),
    )
    return app


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """When each task is sent. If no worker takes a task before it is sent again, it is dropped."""
    at = time.fromisoformat(settings.daily_tasks_at)
    interval = timedelta(minutes=settings.session_cleanup_interval_minutes)
    daily = crontab(hour=at.hour, minute=at.minute)
    times = {
        "cleanup_expired_sessions": (interval, interval),
        "delete_old_archived_sessions": (daily, timedelta(days=1)),
        "generate_session_metrics": (daily, timedelta(days=1)),
    }
    if settings.encryption_keys is not None:
        times["reencrypt_sessions"] = (interval, interval)
    return {
        name: {
            "task": f"fiml.sessions.{name}",
            "schedule": schedule,
            "options": {"expires": expires.total_seconds()},
        }
        for name, (schedule, expires) in times.items()
    }


def run_worker(settings: Settings, *, concurrency: int, has_beat: bool) -> None:
    """Run a worker, with beat beside it, until it is told to stop.

    Raises:
        Misconfigured: there is no broker, or beat can't keep its state.
        Unavailable: the worker failed. Celery may fail to go on after the broker was restarted during a task.
    """
    if _broker(settings) is None:
        if settings.redis_url is not None:
            raise Misconfigured(
                "Celery can't use a Cluster as its broker: set FIML_BROKER_URL to a Redis without Cluster mode, or let "
                "`fiml serve` do the maintenance (FIML_MAINTENANCE=serve)"
            )
        raise Misconfigured(
            "a worker needs a broker: set FIML_REDIS_URL and FIML_DATABASE_URL, or FIML_BROKER_URL; "
            "in the embedded deployment `fiml serve` does the maintenance itself"
        )
    arguments = ["worker", "--loglevel=INFO", f"--concurrency={concurrency}"]
    if has_beat:
        arguments += ["--beat", f"--schedule={_beat_file(settings)}"]
    setup_logging.connect(_log_as_fiml_does)
    logging.getLogger("celery").setLevel(settings.log_level.upper())
    with tracing(), exposing_worker(settings):
        # As `Celery.start` does, which drops the exit code.
        celery.params[0].default = make_app(settings)
        exit_code = celery.main(args=arguments, standalone_mode=False)
    if exit_code:
        raise Unavailable("the worker", "it failed, as the log says", "start it again")


def _log_as_fiml_does(**_signal: Any) -> None:
    """Do nothing: with a receiver of this signal, Celery leaves the logging as fiml has set it up."""


def _beat_file(settings: Settings) -> Path:
    folder = settings.embedded_file.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise Misconfigured(
            f"beat can't keep its state in the folder {folder} ({exc}); set FIML_DATA_DIR, or run with --no-beat"
        ) from exc
    return folder / "beat-schedule"


def _broker(settings: Settings) -> str | None:
    if settings.broker_url is not None:
        return settings.broker_url
    # Celery's Redis transport needs all its keys on one server, so it can't use a Cluster.
    return None if settings.redis_url is None or "+cluster://" in settings.redis_url else settings.redis_url


def _amqp(broker: str | None) -> dict[str, Any]:
    return {"broker_url": broker, "result_backend": "cache+memory://" if broker is None else "rpc://"}


def _redis(broker: str, settings: Settings, visibility: dict[str, Any]) -> dict[str, Any]:
    from fiml.db.redis_url import parse_redis_url  # noqa: PLC0415 - as above

    variable = "FIML_REDIS_URL" if settings.broker_url is None else "FIML_BROKER_URL"
    address = parse_redis_url(broker, variable=variable)
    url = _as_celery_has_it(broker, address)
    options: dict[str, Any] = {"global_keyprefix": f"{settings.redis_prefix}:", **visibility}
    if address.service:
        options |= {"master_name": address.service, "sentinel_kwargs": address.sentinel_options}
    conf: dict[str, Any] = {
        "broker_url": url,
        "broker_transport_options": options,
        "result_backend": url,
        "result_backend_transport_options": options,
    }
    if address.is_tls:
        tls = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
        tls["ssl_cert_reqs"] = _CERTIFICATE[str(tls.get("ssl_cert_reqs", "required"))]
        conf |= {"broker_use_ssl": tls, "redis_backend_use_ssl": tls}
        if address.service:
            options["sentinel_kwargs"] = {**address.sentinel_options, "ssl": True, **tls}
    return conf


def _as_celery_has_it(broker: str, address: "RedisAddress") -> str:
    scheme = broker.partition("://")[0]
    # Nothing stands behind a question mark: Celery would show a password there.
    given = address.options
    names = (given.get("username"), given.get("password"))
    account = ":".join(quote(name or "", safe="") for name in names) + "@" if any(names) else ""
    if scheme == "unix":
        database = f"?virtual_host={given['db']}" if "db" in given else ""
        return f"redis+socket://{account}{quote(given['path'])}{database}"
    hosts = address.hosts or [(given.get("host", "localhost"), given.get("port", 6379))]
    kind = "sentinel" if address.service else scheme
    shown = [(f"[{host}]" if ":" in host else host, port) for host, port in hosts]
    return ";".join(f"{kind}://{account}{host}:{port}/{given.get('db', 0)}" for host, port in shown)
