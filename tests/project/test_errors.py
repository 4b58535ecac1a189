"""Errors survive the way to another process, with their attributes and their text."""

import copy
import inspect
import multiprocessing
import pickle
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from fiml.core import errors
from fiml.core.errors import FimlError, InvalidInput

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FimlError)]
SAMPLES: dict[str, Any] = {
    "UUID": UUID(int=7),
    "datetime": datetime(2024, 12, 23, tzinfo=UTC),
    "int": 3,
    "bool": True,
    "list": ["a", "b"],
}


def sample(parameter: inspect.Parameter) -> Any:
    named = str(parameter.annotation).replace("|", " ").replace("[", " ").replace(".", " ").replace("'", " ").split()
    return next((SAMPLES[word] for word in named if word in SAMPLES), "text")


def made(kind: type[FimlError]) -> FimlError:
    if kind.__init__ is Exception.__init__:
        return kind("what went wrong")
    parameters = list(inspect.signature(kind).parameters.values())
    positional = [sample(each) for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = {each.name: sample(each) for each in parameters if each.kind is each.KEYWORD_ONLY}
    return kind(*positional, **named)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_copies_of_an_error_say_the_same(kind: type[FimlError]) -> None:
    error = made(kind)

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(again) is kind
        assert (str(again), again.args, again.__dict__) == (str(error), error.args, error.__dict__)


def refuse(_: int) -> None:
    raise InvalidInput("field", "is wrong", "mend it")


def test_an_error_reaches_the_process_that_waits_for_it() -> None:
    """A pool would wait for ever for one that it can't read."""
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(InvalidInput, match="field is wrong"):
        pool.map_async(refuse, [1]).get(timeout=60)
