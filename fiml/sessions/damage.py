"""The exceptions that decoding a damaged record may raise. Whoever catches them names the record."""

import msgspec

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, msgspec.DecodeError)
