"""The exceptions that decoding a damaged record may raise, and the error that they become."""

import msgspec

from fiml.core.errors import CorruptRecord

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, msgspec.DecodeError)


def corrupt(record: str, exc: BaseException) -> CorruptRecord:
    """The error for a record that can't be decoded, with the exception in its message."""
    return CorruptRecord(record, f"{type(exc).__name__}: {exc}")
