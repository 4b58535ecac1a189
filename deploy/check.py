"""Checks deploy/ as far as possible without a container engine: `make deploy-check`.

promtool (in Debian's package prometheus) checks the rules, their tests and the dashboard's queries. The steps of the
Dockerfile are carried out in a clean folder. No image is built.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

DEPLOY = Path(__file__).parent
ROOT = DEPLOY.parent
PATIENCE_S = 60
# The Dockerfile's absolute paths, which become folders below the clean one.
PATHS = re.compile(r"(?<![\w.])/(src|build|wheels|opt/fiml)\b")


def main() -> None:
    """Check everything, and exit with 1 if something is wrong."""
    check_rules()
    with tempfile.TemporaryDirectory(prefix="fiml-image-") as folder:
        check_image(Path(folder))
    print("deploy/ passes every check that needs no container engine")


def check_rules() -> None:
    """Let promtool check the scrape configuration, the alerts, their tests and the dashboard's queries."""
    promtool = shutil.which("promtool")
    if promtool is None:
        sys.exit("promtool is not on PATH: install Prometheus (on Debian, the package prometheus)")
    folder = DEPLOY / "prometheus"
    run([promtool, "check", "config", "prometheus.yml"], folder)
    run([promtool, "test", "rules", "alerts.test.yml"], folder)
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "fiml.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = [{"record": f"dashboard:query{number}", "expr": query} for number, query in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)  # JSON is also YAML
        file.flush()
        run([promtool, "check", "rules", file.name], folder)


def check_image(root: Path) -> None:
    """Carry out the stages of the Dockerfile below `root`, and check that the resulting server starts and stops."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(root)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    steps = instructions()
    final = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    folder = root
    for word, rest in steps[:final]:
        match word:
            case "ARG":
                name, _, value = rest.partition("=")
                environment[name] = value
            case "WORKDIR":
                folder = root / rest.lstrip("/")
                folder.mkdir(parents=True)
            case "COPY":
                copy(shlex.split(rest), folder)
            case "RUN":
                run(["/bin/sh", "-c", below(root, rest)], folder, environment)
    check_server(root, dict(setting.split("=", 1) for setting in shlex.split(one(steps[final:], "ENV"))), steps[final:])


def check_server(root: Path, settings: dict[str, str], steps: list[tuple[str, str]]) -> None:
    """Start the image's command with its settings, on free loopback ports."""
    http, metrics = free_port(), free_port()
    environment = settings | {
        "PATH": f"{root}/opt/fiml/bin:{os.defpath}",
        "FIML_DATA_DIR": f"{root}/var/lib/fiml",
        "FIML_METRICS_ADDRESS": settings["FIML_METRICS_ADDRESS"].replace("0.0.0.0:9464", f"127.0.0.1:{metrics}"),
        "FIML_MARKET_DATA": "sample",
    }
    entry, command = json.loads(one(steps, "ENTRYPOINT")), json.loads(one(steps, "CMD"))
    fiml = f"{root}/opt/fiml/bin/{entry[0]}"
    run([fiml, "--version"], root, environment)
    arguments = [word.replace("0.0.0.0:8765", f"127.0.0.1:{http}") for word in command]
    server = subprocess.Popen([fiml, *arguments], cwd=root, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{http}/health", server)
        probe = json.loads(one(steps, "HEALTHCHECK").partition("CMD ")[2])
        run([f"{root}/opt/fiml/bin/python", *(word.replace("9464", str(metrics)) for word in probe[1:])], root)
        server.send_signal(signal.SIGTERM)
        if server.wait(PATIENCE_S) != 0:
            sys.exit(f"the server exited with {server.returncode}")
    finally:
        if server.poll() is None:
            server.kill()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its text on one line."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def one(steps: list[tuple[str, str]], wanted: str) -> str:
    [found] = [rest for word, rest in steps if word == wanted]
    return found


def copy(words: list[str], folder: Path) -> None:
    *sources, target = words
    for source in (ROOT / name for name in sources):
        if source.is_dir():
            shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / target)


def below(root: Path, text: str) -> str:
    return PATHS.sub(lambda found: f"{root}/{found[1]}", text)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    print("$", shlex.join(command))
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} exited with {done.returncode}")


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                print(url, answer.status, answer.read().decode())
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} doesn't answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
