"""Market answers in a cache: the JSON of a value, or of the fact that a symbol doesn't exist."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from fiml.core.errors import SymbolNotFound

Value = TypeVar("Value")


class NotFound(BaseModel):
    """A source's answer that it has no such symbol."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: str
    source: str
    known: list[str]
    is_nearest: bool
    meant: str | None = None

    @classmethod
    def of(cls, error: SymbolNotFound) -> "NotFound":
        """From the error."""
        return cls(
            symbol=error.symbol,
            source=error.source,
            known=error.known,
            is_nearest=error.is_nearest,
            meant=error.meant,
        )

    def error(self) -> SymbolNotFound:
        """As the error again."""
        return SymbolNotFound(
            self.symbol, source=self.source, known=self.known, is_nearest=self.is_nearest, meant=self.meant
        )


class _NotFoundText(BaseModel):
    model_config = ConfigDict(extra="forbid")

    not_found: NotFound


_NOT_FOUND = '{"not_found":'


def encode(value: Value | NotFound, adapter: TypeAdapter[Value]) -> str:
    """The text of a value, or of its absence."""
    if isinstance(value, NotFound):
        return _NotFoundText(not_found=value).model_dump_json()
    return adapter.dump_json(value).decode()


def decode(text: str, adapter: TypeAdapter[Value]) -> Value | NotFound:
    """The inverse of `encode`.

    Raises:
        ValueError: the text can't be decoded, or its value isn't valid.
    """
    if text.startswith(_NOT_FOUND):
        return _NotFoundText.model_validate_json(text).not_found
    return adapter.validate_json(text)
