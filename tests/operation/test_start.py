"""What a server loads before its first answer, for which a client waits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LATER = {"rich.console", "sqlalchemy", "alembic", "redis", "asyncpg", "jwt.api_jwt", "yfinance", "ccxt", "celery"}
PROVIDERS = {"fiml.market.providers.yahoo", "fiml.market.providers.coins"}
# The client leaves at once; what is said then goes to standard error.
SERVE = f"""
import atexit, gc, sys
from fiml.__main__ import main
loaded = {sorted(LATER | PROVIDERS)}
tell = lambda: print(gc.isenabled(), sorted(set(loaded) & set(sys.modules)), file=sys.stderr)
atexit.register(tell)
sys.argv = ["fiml", "serve"]
main()
"""


def test_a_start_loads_no_engine_and_no_provider_and_leaves_the_collector_on(tmp_path: Path) -> None:
    """The providers are there, and the market is said to be live; the first question loads them."""
    settings = {"FIML_DATA_DIR": str(tmp_path), "FIML_MARKET_DATA": "live", "PATH": os.defpath}

    served = subprocess.run(
        [sys.executable, "-c", SERVE],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=settings,
        timeout=60,
    )

    assert served.stderr.decode() == "True []\n"
    assert served.returncode == 0


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("--help", 0, "--http HOST:PORT"), ("--nonsense", 2, "No such option: --nonsense")]
)
def test_help_and_usage_errors_need_nothing_that_is_not_loaded(argument: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fiml", "serve", argument], check=False, capture_output=True, text=True
    )

    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
