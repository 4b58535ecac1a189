"""An identity provider: keys, their file, and tokens signed with them."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER = "https://issuer.example"
AUDIENCE = "fiml"
USUAL = "sessions:read sessions:write market:read"


class Issuer:
    """Signs with an RSA key, and with an EC one; `stranger` is a key that nobody published."""

    def __init__(self) -> None:
        self.rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec_key = ec.generate_private_key(ec.SECP256R1())
        self.stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def write_keys(self, file: Path) -> str:
        """The file of public keys, by its path."""
        keys = [
            json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa_key.public_key())) | {"kid": "r", "use": "sig"},
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.ec_key.public_key())) | {"kid": "e", "use": "sig"},
        ]
        file.write_text(json.dumps({"keys": keys}))
        return str(file)

    def variables(self, file: Path) -> dict[str, str]:
        """The settings of a server that takes its tokens; the keys go into `file`."""
        return {
            "FIML_AUTH_ISSUER": ISSUER,
            "FIML_AUTH_AUDIENCE": AUDIENCE,
            "FIML_AUTH_JWKS": self.write_keys(file),
            "FIML_PUBLIC_URL": "https://fiml.example/mcp",
        }

    def claims(self, user: str = "ann", **changes: Any) -> dict[str, Any]:
        now = datetime.now(UTC)  # noqa: TID251  the server's processes have the machine's clock
        usual = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user,
            "scope": USUAL,
            "iat": now,
            "exp": now + timedelta(hours=1),
        }
        return {name: value for name, value in (usual | changes).items() if value is not None}

    def token(self, user: str = "ann", **changes: Any) -> str:
        return jwt.encode(self.claims(user, **changes), self.rsa_key, algorithm="RS256", headers={"kid": "r"})

    def ec_token(self, user: str = "ann", **changes: Any) -> str:
        return jwt.encode(self.claims(user, **changes), self.ec_key, algorithm="ES256", headers={"kid": "e"})

    def strange_token(self) -> str:
        return jwt.encode(self.claims(), self.stranger, algorithm="RS256", headers={"kid": "r"})

    def other_algorithm(self) -> str:
        return jwt.encode(self.claims(), self.rsa_key, algorithm="RS512", headers={"kid": "r"})

    def unsigned(self) -> str:
        return jwt.encode(self.claims(), None, algorithm="none", headers={"kid": "r"})  # type: ignore[arg-type]

    def nested(self, *, depth: int) -> str:
        """With a header of lists in lists, which is read before the signature can be."""
        header = b'{"alg": "RS256", "kid": "r", "x": ' + b"[" * depth + b"]" * depth + b"}"
        return ".".join([_encoded(header), *self.token().split(".")[1:]])

    def confused(self) -> str:
        """Signed with the public key as if it were a shared secret."""
        secret = self.rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        claims = self.claims()
        claims |= {name: int(claims[name].timestamp()) for name in ("iat", "exp")}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "r"}, claims))
        return f"{signed}.{_encoded(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
