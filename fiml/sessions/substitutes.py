"""What a message says of a value that can't be stored: its type, and what can be stored in its place."""

from collections.abc import Set
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import chain
from uuid import UUID

from fiml.core.errors import echo

# Recognized by name, since neither library need be installed.
_MISSING = ("NAType", "NaTType")
_BY_TYPE: tuple[tuple[tuple[type, ...], str], ...] = (
    ((date, time), "value.isoformat()"),
    ((timedelta,), "value.total_seconds()"),
    ((Decimal,), "float(value) or str(value)"),
    ((UUID,), "str(value)"),
    ((tuple, Set), "list(value)"),
)
_BY_METHOD = {
    "tolist": "value.tolist()",  # arrays, numpy's numbers, the columns and indexes of pandas
    "to_list": "value.to_list()",  # the columns of polars
    "to_dicts": "value.to_dicts()",  # the frames of polars
    "itertuples": 'json.loads(value.to_json(orient="records", date_format="iso"))',  # the frames of pandas
    "to_dict": "value.to_dict()",
}


def type_name(value: object) -> str:
    """The name of a value's type; with its module, since numpy has a bool as well."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def shown(value: object) -> str:
    """A value of the wrong type; with its type, where numpy's could be taken for one of Python's."""
    return echo(value) if type(value).__module__ == "builtins" else f"{echo(value)}, a {type_name(value)}"


def substitute_for(value: object) -> str | None:
    """How to make a JSON value of `value`, as code; `None` if there is no usual way."""
    kind = type(value)
    if kind.__name__ in _MISSING:
        return "None"
    # Methods are asked of the type: an object may answer to any name, and take its time.
    by_type = (code for types, code in _BY_TYPE if isinstance(value, types))
    by_method = (code for method, code in _BY_METHOD.items() if hasattr(kind, method))
    return next(chain(by_type, by_method), None)
