"""Where PostgreSQL's SQL and SQLite's differ: inserting many rows, and reading JSON."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, ColumnElement, Connection, Table, Text, bindparam, case, cast, false, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.selectable import TableValuedAlias


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    return _insert(table, for_postgresql=is_postgresql(connection))


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    *,
    key: str,
    where: Callable[[Any], ColumnElement[bool]] | None = None,
    value: Callable[[Any, str], ColumnElement[Any]] | None = None,
) -> None:
    """Insert rows, which all have the same columns. A row with the same `key` is replaced if `where` allows it.

    `where` gets the columns of the new row and returns the condition; `value` gets them and the name of a column, and
    returns what the column becomes, if not the new row's value. Statements are cached by both, so they must be
    functions of a module, not lambdas.
    """
    names = tuple(rows[0])
    for_postgresql = is_postgresql(connection)
    given: Any = {name: [row[name] for row in rows] for name in names} if for_postgresql else rows
    connection.execute(_upsert(table, names, key, where, value, for_postgresql=for_postgresql), given)


@lru_cache(maxsize=32)
def _upsert(
    table: Table,
    names: tuple[str, ...],
    key: str,
    where: Callable[[Any], ColumnElement[bool]] | None,
    value: Callable[[Any, str], ColumnElement[Any]] | None,
    *,
    for_postgresql: bool,
) -> Any:
    statement = _insert(table, for_postgresql=for_postgresql)
    if for_postgresql:
        # One array for each column: one message to the server for any number of rows. JSON travels as text.
        types = {name: table.c[name].type for name in names}
        is_json = {name: isinstance(types[name], JSON) for name in names}
        arrays = [
            bindparam(name, type_=postgresql.ARRAY(Text() if is_json[name] else types[name], dimensions=1))
            for name in names
        ]
        source = func.unnest(*arrays).table_valued(*names, name="given").render_derived()
        given = [cast(source.c[name], types[name]) if is_json[name] else source.c[name] for name in names]
        statement = statement.from_select(names, select(*given))
    new = statement.excluded
    new_values = {name: new[name] if value is None else value(new, name) for name in names if name != key}
    return statement.on_conflict_do_update(
        index_elements=[key], set_=new_values, where=None if where is None else where(new)
    )


def _insert(table: Table, *, for_postgresql: bool) -> Any:
    return postgresql.insert(table) if for_postgresql else sqlite.insert(table)


def json_elements(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The strings of a JSON array, as rows with one column, `value`."""
    each = func.jsonb_array_elements_text if is_postgresql(connection) else func.json_each
    return each(column).table_valued("value", joins_implicitly=True)


def if_json(
    connection: Connection, column: ColumnElement[Any], condition: ColumnElement[bool], *, otherwise: bool
) -> ColumnElement[bool]:
    """A condition on a column's JSON; `otherwise` where a damaged SQLite file has something else there."""
    if is_postgresql(connection):
        return condition
    # CASE guarantees that the JSON is only read after it was found valid; AND would not.
    return case((func.json_valid(column) == 1, condition), else_=true() if otherwise else false())


def json_members(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The members of a JSON object, as rows with the columns `key` and `value`, both text."""
    each = func.jsonb_each_text if is_postgresql(connection) else func.json_each
    return each(column).table_valued("key", "value", joins_implicitly=True)


def json_object(connection: Connection, key: ColumnElement[Any], value: ColumnElement[Any]) -> Any:
    """The aggregate that makes one JSON object from many pairs."""
    collect = func.jsonb_object_agg if is_postgresql(connection) else func.json_group_object
    return collect(key, value)


def is_postgresql(connection: Connection) -> bool:
    """Whether the database is PostgreSQL; otherwise it is SQLite."""
    return connection.dialect.name == "postgresql"
