"""TLS in front of a server that has none, Valkey or PostgreSQL: a small proxy, and its certificates."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_CLIENT_HELLO = b"\x16"
# With which a client of PostgreSQL asks for TLS before it begins with it.
_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
_CHUNK_BYTES = 1 << 16


class Certificates:
    """A certificate of its own authority for 127.0.0.1, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "server.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fiml tests")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(
            datetime(2100, 1, 1, tzinfo=UTC)
        )
        builder = builder.add_extension(here, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        signed = builder.sign(key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.file.write_bytes(private + signed.public_bytes(pem))


@contextmanager
def tls_before(address: int | Path, certificates: Certificates, *, takes_plain: bool = False) -> Iterator[int]:
    """The port on loopback at which a server is reached with TLS; without, too, where that is taken.

    The server itself is at a port on loopback, or at a Unix socket.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.file)
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def accept() -> None:
        while not stopped.is_set():
            with suppress(OSError):
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        with suppress(OSError), client:
            if client.recv(len(_SSL_REQUEST), socket.MSG_PEEK) == _SSL_REQUEST:
                client.recv(len(_SSL_REQUEST))
                client.sendall(b"S")
            is_tls = client.recv(1, socket.MSG_PEEK) == _CLIENT_HELLO
            if not is_tls and not takes_plain:
                return
            with (
                context.wrap_socket(client, server_side=True) if is_tls else client as inside,
                _connected(address) as server,
            ):
                back = threading.Thread(target=_pass_on, args=(server, inside), daemon=True)
                back.start()
                _pass_on(inside, server)
                back.join()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopped.set()
        # Wakes the one that accepts; closing the socket alone would not.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def _connected(address: int | Path) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while said := source.recv(_CHUNK_BYTES):
            target.sendall(said)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
