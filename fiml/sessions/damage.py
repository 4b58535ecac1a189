"""What is raised where a stored record is decoded that isn't what was written: whoever catches it says whose it is."""

import msgspec

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, msgspec.DecodeError)
