"""The parts of market answers. A missing figure is null, and `missing` says why."""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from fiml.core import clock
from fiml.core.model import Model

# Code for hundredths of a currency -> the currency itself, and the name of the hundredths.
HUNDREDTHS = {"GBp": ("GBP", "pence"), "ZAc": ("ZAR", "cents"), "ILA": ("ILS", "agorot")}


def whole_currency(currency: str) -> str:
    """The currency, or the one whose hundredths it means: `GBP` for `GBp`."""
    return HUNDREDTHS[currency][0] if currency in HUNDREDTHS else currency


def rounded(figure: float, digits: int = 6) -> float:
    """The figure, rounded; never a negative zero."""
    return round(figure, digits) + 0.0


class AssetKind(StrEnum):
    """What an instrument is."""

    EQUITY = "equity"
    INDEX = "index"
    COIN = "coin"


class Adjustment(StrEnum):
    """What past prices were adjusted for, so that they can be compared with later ones."""

    NONE = "none"
    SPLITS = "splits"
    SPLITS_AND_DIVIDENDS = "splits+dividends"


class Depth(StrEnum):
    """How much an answer contains: the quote; also technicals and fundamentals; also comparisons."""

    QUICK = "quick"
    STANDARD = "standard"
    DEEP = "deep"


class Bar(NamedTuple):
    """One day's trading; `None` for what the source doesn't have."""

    date: date
    open: float | None
    high: float | None
    low: float | None
    close: float
    volume: float | None


@dataclass(frozen=True, slots=True)
class Bars:
    """An instrument's days: at least one, oldest first, each with a finite close above zero."""

    symbol: str
    currency: str
    exchange: str | None
    source: str
    adjustment: Adjustment
    bars: tuple[Bar, ...]

    def __post_init__(self) -> None:
        if not self.bars:
            raise ValueError(f"{self.symbol} has no bars")
        if not all(math.isfinite(bar.close) and bar.close > 0 for bar in self.bars):
            raise ValueError(f"{self.symbol} has a close that is not a price")
        if any(earlier.date >= later.date for earlier, later in pairwise(self.bars)):
            raise ValueError(f"{self.symbol} has dates out of order")

    @property
    def as_of(self) -> date:
        """The date of the last bar."""
        return self.bars[-1].date


class _Model(Model):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("UTC is not in the years 1 to 9999") from exc


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Missing = Annotated[dict[str, str], Field(description="field -> why it is null")]
Fraction = Annotated[float | None, Field(description="fraction: 0.01 is one per cent")]


class Instrument(_Model):
    """Something with a price. `symbol` is unique within its source."""

    symbol: str
    name: str
    kind: AssetKind
    currency: str
    exchange: str | None


class Quote(_Model):
    """The last bar of an instrument, and the step from the one before."""

    symbol: str
    name: str
    kind: AssetKind
    price: float = Field(description="in `currency`; for an index its level, in points")
    price_label: Literal["close", "adjusted close", "last trade"] = Field(
        description="an adjusted close is lowered by later dividends: nobody paid it"
    )
    currency: str
    exchange: str | None
    source: str
    as_of: date = Field(description="date of the last bar; every figure is of this day")
    market_time: Moment | None = Field(None, description="moment of the price, if the source reports it")
    adjustment: Adjustment
    change: float | None = Field(description="price minus previous_close, in `currency`")
    change_percent: float | None = Field(description="change against previous_close: 1 is one per cent")
    change_window: Literal["previous close", "24 hours"] = Field(
        "previous close", description="since when the change is counted"
    )
    previous_close: float | None = Field(description="price of the bar before; for 24 hours, the price then")
    open: float | None
    high: float | None
    low: float | None
    volume: float | None
    volume_unit: Literal["shares", "coins"]
    note: str | None = Field(description="what to know about these figures")
    missing: Missing

    @property
    def price_text(self) -> str:
        """The price and its currency (of an index: points), with 2 decimals, or 4 digits if it is below 1."""
        decimals = 3 - math.floor(math.log10(self.price)) if 0 < self.price < 1 else 2
        unit = "points" if self.kind is AssetKind.INDEX else self.currency
        return f"{self.price:,.{decimals}f} {unit}"


class Fundamentals(_Model):
    """A company's figures, as its source reports them."""

    symbol: str
    source: str
    as_of: date | None = Field(
        description="day of the price behind market_cap, pe_ratio, dividend_yield; eps and revenue are as last reported"
    )
    currency: str
    market_cap: float | None
    pe_ratio: float | None = Field(description="price over earnings per share of twelve months")
    eps: float | None = Field(description="earnings per share of twelve months, in `currency`")
    dividend_yield: Fraction
    revenue: float | None = Field(description="of twelve months, in `currency`")
    sector: str | None
    note: str | None = Field(None, description="what to know about these figures")
    missing: Missing

    @property
    def is_empty(self) -> bool:
        """Whether there is no figure at all."""
        figures = (self.market_cap, self.pe_ratio, self.eps, self.dividend_yield, self.revenue)
        return all(figure is None for figure in figures)


class Technicals(_Model):
    """Figures computed from an instrument's bars. A year is 252 bars, of a coin 365."""

    as_of: date
    source: str
    adjustment: Adjustment
    bars_used: int
    sma_20: float | None = Field(description="mean of the last 20 closes")
    sma_50: float | None
    sma_200: float | None
    ema_12: float | None = Field(description="exponential mean, weight 2/13, begun with the mean of the first 12")
    ema_26: float | None
    rsi_14: float | None = Field(description="Wilder's relative strength index, 0 to 100")
    volatility_annual: Fraction
    volatility_days: int = Field(description="number of daily log returns behind volatility_annual")
    max_drawdown: float | None = Field(description="deepest fall of the close within a year: -0.2 is a fall by a fifth")
    max_drawdown_from: date | None
    max_drawdown_to: date | None
    high_52w: float | None
    high_52w_on: date | None
    low_52w: float | None
    low_52w_on: date | None
    high_low_basis: Literal["highs and lows", "closes"] = Field(description="what high_52w and low_52w are taken from")
    return_1d: Fraction
    return_1w: Fraction
    return_1m: Fraction
    return_3m: Fraction
    return_1y: Fraction
    note: str | None = Field(description="days without a bar, where they move a window")
    missing: Missing


class Comparison(_Model):
    """Two instruments over the dates that both have."""

    symbol: str
    other: str
    other_is: str | None = Field(None, description="what `other` stands for: name, kind, exchange, currency, source")
    overlap_from: date | None
    overlap_to: date | None
    overlap_days: int = Field(description="number of dates that both have")
    return_self: Fraction
    return_other: Fraction
    relative_return: float | None = Field(description="return_self minus return_other, as a fraction")
    correlation: float | None = Field(description="Pearson's, of the returns from one common date to the next")
    note: str | None = Field(description="why the two are not like for like")
    missing: Missing


def age_s(known_at: datetime, now: datetime) -> int:
    """How many whole seconds ago something was learnt; 0 if the clock that saw it is ahead of ours."""
    return max(0, int((now - known_at).total_seconds()))


class Delivery(_Model):
    """How one part of an answer got here."""

    layer: Literal["provider", "l1", "l2"] = Field(description="who answered: the provider, or which cache")
    known_at: Moment = Field(description="when it was obtained from the provider")
    fresh_until: Moment | None = Field(description="until when it is current; null: always, as history is")
    is_stale: bool = Field(description="the provider failed, and this is its last answer")
    age_seconds: int = Field(description="since known_at")

    @property
    def is_current(self) -> bool:
        """Whether it is current; the sample's parts don't say."""
        return self.fresh_until is not None and clock.is_current(known_at=self.known_at, until=self.fresh_until)

    def aged(self, now: datetime) -> "Delivery":
        """The same with its age at a later moment."""
        return self.model_copy(update={"age_seconds": age_s(self.known_at, now)})


class MarketAnswer(_Model):
    """All that one question about an instrument brought, as deep as it was asked."""

    quote: Quote
    delivery: dict[str, Delivery] = Field(
        default_factory=dict, description="`quote`, `bars`, `fundamentals`, `bars:OTHER` -> how"
    )
    technicals: Technicals | None
    fundamentals: Fundamentals | None
    comparisons: list[Comparison]
    not_compared: dict[str, str] = Field(description="symbol -> why it could not be compared")

    @property
    def stale_since(self) -> datetime | None:
        """When the oldest stale part was learnt; `None` if no part is stale."""
        return min((part.known_at for part in self.delivery.values() if part.is_stale), default=None)

    @property
    def figures(self) -> dict[str, float]:
        """Every number by its name; in a comparison, with the other symbol after a colon, as in `correlation:KO`."""
        figures: dict[str, float] = {}
        for part in (self.quote, self.fundamentals, self.technicals):
            if part is not None:
                figures |= _numbers(part, _NO_FIGURES)
        for comparison in self.comparisons:
            numbers = _numbers(comparison, _NO_FIGURES)
            figures |= {f"{name}:{comparison.other}": number for name, number in numbers.items()}
        return figures


_NO_FIGURES = {"bars_used", "volatility_days", "overlap_days"}


def _numbers(part: BaseModel, without: set[str]) -> dict[str, float]:
    return {
        name: value
        for name, value in part
        if name not in without and isinstance(value, int | float) and not isinstance(value, bool)
    }
