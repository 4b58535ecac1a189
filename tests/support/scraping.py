"""What Prometheus would read."""

import asyncio
import urllib.request
from collections.abc import Mapping
from urllib.error import HTTPError

from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, float]


def parse(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as they are written: `name{label="value"}`."""
    return {
        _written(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def fetch(address: str, path: str = "/metrics") -> tuple[int, str]:
    """Status and body of an address."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


async def scrape(address: str) -> dict[str, float]:
    """The samples at an address, fetched from a thread, as an outsider does."""
    status, text = await asyncio.to_thread(fetch, address)
    assert status == 200, text
    return parse(text)


def _written(name: str, labels: Mapping[str, str]) -> str:
    listed = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"{name}{{{listed}}}" if listed else name
