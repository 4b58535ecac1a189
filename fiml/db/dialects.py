"""What PostgreSQL and SQLite say differently: inserting many rows, and looking into JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.selectable import TableValuedAlias


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if is_postgresql(connection) else sqlite.insert(table)


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    *,
    key: str,
    where: Callable[[Any], ColumnElement[bool]] | None = None,
) -> None:
    """Insert rows that all have the same columns, and replace those of the same `key` where `where` says so.

    `where` is given the columns of the new row.
    """
    statement = insert_into(connection, table)
    names = list(rows[0])
    given: Any = rows
    if is_postgresql(connection):
        # A column an array: one message to the server, whatever the number of rows.
        arrays = [bindparam(name, type_=postgresql.ARRAY(table.c[name].type)) for name in names]
        source = func.unnest(*arrays).table_valued(*names, name="given").render_derived()
        statement = statement.from_select(names, select(*source.c))
        given = {name: [row[name] for row in rows] for name in names}
    new_values = {name: statement.excluded[name] for name in names if name != key}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[key], set_=new_values, where=None if where is None else where(statement.excluded)
        ),
        given,
    )


def json_elements(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The texts of a JSON array, as rows of one column `value`."""
    each = func.jsonb_array_elements_text if is_postgresql(connection) else func.json_each
    return each(column).table_valued("value", joins_implicitly=True)


def json_members(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The members of a JSON object, as rows of `key` and `value`, both text."""
    each = func.jsonb_each_text if is_postgresql(connection) else func.json_each
    return each(column).table_valued("key", "value", joins_implicitly=True)


def json_object(connection: Connection, key: ColumnElement[Any], value: ColumnElement[Any]) -> Any:
    """The aggregate that makes one JSON object of many pairs."""
    collect = func.jsonb_object_agg if is_postgresql(connection) else func.json_group_object
    return collect(key, value)


def is_postgresql(connection: Connection) -> bool:
    """Whether it isn't SQLite."""
    return connection.dialect.name == "postgresql"
