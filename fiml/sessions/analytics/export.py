"""Writes rows of metrics to a file, page by page."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Connection, Double, Integer, select, tuple_

from fiml.core import clock
from fiml.core.errors import InvalidInput, MissingExtra, echo
from fiml.db.tables import UtcDateTime, session_metrics
from fiml.sessions.analytics.figures import Filters
from fiml.sessions.damage import DAMAGE, corrupt

PAGE = 5000
_LEFT_OUT = {"id", "format"}
_JSON = ("assets_analyzed", "query_type_summary", "tags", "time_histogram", "queries_by_day")
_COLUMNS = [column for column in session_metrics.c if column.name not in _LEFT_OUT]
COLUMNS = [column.name for column in _COLUMNS]

Row = dict[str, Any]


def page(connection: Connection, filters: Filters, *, limit: int = PAGE, after: Row | None) -> list[Row]:
    """Rows of ended sessions, newest first, after another row.

    Raises:
        CorruptRecord: a row can't be decoded.
    """
    created_at, session_id = session_metrics.c.created_at, session_metrics.c.session_id
    statement = (
        select(*_COLUMNS)
        .where(created_at >= filters.since, session_metrics.c.ended_at.is_not(None), *filters.on_metrics())
        .order_by(created_at.desc(), session_id.desc())
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(tuple_(created_at, session_id) < tuple_(after["created_at"], after["session_id"]))
    return [_decoded(dict(row)) for row in connection.execute(statement).mappings()]


def flat(row: Row) -> Row:
    """A row without nested values: lists and counts as JSON, ids and times as text."""
    return {name: _flat_value(value) for name, value in row.items()}


class Target(ABC):
    """A new file to which rows are written."""

    suffix: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def open(self) -> None:
        """Begin the file."""

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


class _Csv(Target):
    suffix = "csv"

    def open(self) -> None:
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()

    def add(self, rows: Sequence[Row]) -> None:
        self._writer.writerows(flat(row) for row in rows)

    def close(self) -> None:
        self._file.close()


class _JsonLines(Target):
    suffix = "jsonl"

    def open(self) -> None:
        self._file = self.path.open("w", encoding="utf-8")

    def add(self, rows: Sequence[Row]) -> None:
        self._file.writelines(json.dumps(row, default=_flat_value, ensure_ascii=False) + "\n" for row in rows)

    def close(self) -> None:
        self._file.close()


class _Parquet(Target):
    suffix = "parquet"

    def open(self) -> None:
        self._arrow, parquet = _pyarrow()
        types = {
            UtcDateTime: self._arrow.timestamp("us", tz="UTC"),
            Boolean: self._arrow.bool_(),
            Double: self._arrow.float64(),
            BigInteger: self._arrow.int64(),
            Integer: self._arrow.int64(),
        }
        self._schema = self._arrow.schema(
            [(column.name, types.get(type(column.type), self._arrow.string())) for column in _COLUMNS]
        )
        self._writer = parquet.ParquetWriter(self.path, self._schema)

    def add(self, rows: Sequence[Row]) -> None:
        columns = {
            name: [row[name] if isinstance(row[name], datetime) else _flat_value(row[name]) for row in rows]
            for name in COLUMNS
        }
        self._writer.write_table(self._arrow.Table.from_pydict(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


_TARGETS: dict[str, type[Target]] = {target.suffix: target for target in (_Csv, _JsonLines, _Parquet)}


def open_target(path: Path, format_name: str | None) -> Target:
    """Create a new file in a format, by default that of its suffix.

    Raises:
        InvalidInput: the format is unknown, or the file exists or can't be created.
        MissingExtra: the format needs a package that isn't installed.
    """
    name = path.suffix.removeprefix(".") if format_name is None else format_name
    if name not in _TARGETS:
        raise InvalidInput("format", f"{echo(name)} is unknown", f"valid values are {', '.join(_TARGETS)}")
    if name == _Parquet.suffix:
        _pyarrow()
    try:
        path.open("x").close()
    except FileExistsError:
        raise InvalidInput("file", f"{path} already exists", "name a new file, or remove that one") from None
    except OSError as exc:
        raise _not_written(path, exc) from exc
    return _TARGETS[name](path)


async def write(target: Target, read_page: Callable[[Row | None], Awaitable[list[Row]]]) -> int:
    """Write all pages; how many rows. If that fails, the file is removed.

    Raises:
        InvalidInput: the file can't be written completely.
    """
    count, last = 0, None
    is_finished = False
    try:
        with _writing(target.path):
            target.open()
        try:
            while rows := await read_page(last):
                with _writing(target.path):
                    target.add(rows)
                count, last = count + len(rows), rows[-1]
        finally:
            with _writing(target.path):
                target.close()
        is_finished = True
    finally:
        if not is_finished:
            target.path.unlink(missing_ok=True)
    return count


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _not_written(path, exc) from exc


def _not_written(path: Path, exc: OSError) -> InvalidInput:
    return InvalidInput("file", f"{path} can't be written ({exc.strerror or exc})", "name another file")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415 - as above
    except ModuleNotFoundError as exc:
        raise MissingExtra("Parquet", "parquet") from exc
    return pyarrow, parquet


def _decoded(row: Row) -> Row:
    try:
        return row | {name: json.loads(row[name]) for name in _JSON}
    except DAMAGE as exc:
        raise corrupt(f"the metrics of session {row['session_id']}", exc) from exc


def _flat_value(value: Any) -> Any:
    match value:
        case datetime():
            return clock.to_iso(value)
        case UUID():
            return str(value)
        case dict() | list():
            return json.dumps(value, ensure_ascii=False)
    return value
