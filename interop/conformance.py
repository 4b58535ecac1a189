"""Runs scenarios of the MCP conformance suite against fiml and a bare server on the same SDK.

Run it with `make interop`. fiml may fail only checks that the bare server fails too and for which the baseline gives a
reason. A check that fiml passes must be removed from the baseline.
"""

import json
import sys
import tempfile
import tomllib
from pathlib import Path

from programs import free_address, run_node, serving

HERE = Path(__file__).parent
SCENARIOS = {
    "2025-11-25": (
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "resources-list",
        "prompts-list",
        "dns-rebinding-protection",
    ),
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "resources-list",
        "prompts-list",
        "caching",
        "http-header-validation",
        "server-sse-multiple-streams",
        "sep-2164-resource-not-found",
        "dns-rebinding-protection",
    ),
}
PASSED = {"SUCCESS", "INFO", "SKIPPED"}


def run_scenario(url: str, scenario: str, revision: str) -> dict[str, bool]:
    """Whether a server passes each check of a scenario."""
    with tempfile.TemporaryDirectory(prefix="fiml-conformance-") as folder:
        done = run_node(
            *("conformance", "server", "--url", url, "--scenario", scenario),
            *("--spec-version", revision, "--output-dir", folder),
        )
        files = list(Path(folder).rglob("checks.json"))
        if len(files) != 1:
            raise SystemExit(f"{scenario} {revision} left no results:\n{done.stdout}{done.stderr}")
        passed: dict[str, bool] = {}
        for check in json.loads(files[0].read_text(encoding="utf-8")):
            passed[check["id"]] = passed.get(check["id"], True) and check["status"] in PASSED
    return passed


def judge(ours: dict[str, bool], bare: dict[str, bool], reasons: dict[str, str]) -> list[str]:
    """What is wrong with the results of a scenario."""
    failed = {check for check, is_passed in ours.items() if not is_passed}
    wrong = [f"{check}: failed, and the baseline has no reason" for check in sorted(failed - reasons.keys())]
    wrong += [f"{check}: failed, and a bare server passes it" for check in sorted(failed) if bare.get(check)]
    wrong += [
        f"{check}: missing, and a bare server passes it" for check, well in bare.items() if well > (check in ours)
    ]
    return wrong + [f"{check}: in the baseline, and passed" for check in sorted(reasons.keys() - failed)]


def compare(ours: str, bare: str) -> tuple[int, int]:
    """Run all scenarios on both; how many had the expected results, and how many didn't."""
    baseline = tomllib.loads((HERE / "conformance_baseline.toml").read_text(encoding="utf-8"))
    good = bad = 0
    for revision, scenarios in SCENARIOS.items():
        for scenario in scenarios:
            found, beside = (run_scenario(url, scenario, revision) for url in (ours, bare))
            wrong = judge(found, beside, baseline.get(scenario, {}))
            counts = f"{sum(found.values())} of {len(found)} checks, a bare server {sum(beside.values())}"
            print(f"{'FAILED' if wrong else 'ok':8}{revision} {scenario}: {counts}")  # noqa: T201 - the report
            for line in wrong:
                print(f"        {line}")  # noqa: T201 - as above
            good, bad = good + (not wrong), bad + bool(wrong)
    return good, bad


def main() -> int:
    """Print a line for each scenario and how many there were; 1 if one failed."""
    fiml, python = sys.argv[1:]
    ours, bare = free_address(), free_address()
    with (
        tempfile.TemporaryDirectory(prefix="fiml-interop-") as folder,
        serving(fiml, "serve", "--http", ours, address=ours, FIML_DATA_DIR=folder, FIML_MARKET_DATA="sample") as url,
        serving(python, str(HERE / "bare_server.py"), bare, address=bare) as bare_url,
    ):
        good, bad = compare(url, bare_url)
    print(f"{good} passed, {bad} failed")  # noqa: T201 - the report
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
