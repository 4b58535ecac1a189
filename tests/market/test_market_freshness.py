"""How long answers are current, by the calendars of the markets."""

import sys
from datetime import UTC, datetime, timedelta

import pytest

from fiml.market import freshness
from fiml.market.freshness import Part, Trading, calendar_of, fresh_until
from fiml.market.models import AssetKind, Instrument

CLOSED, OPEN = timedelta(minutes=15), timedelta(seconds=15)


def make_instrument(symbol: str = "AAPL", kind: AssetKind = AssetKind.EQUITY, exchange: str = "NASDAQ") -> Instrument:
    return Instrument(symbol=symbol, name=symbol, kind=kind, currency="USD", exchange=exchange)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


BITCOIN = make_instrument("BTC", AssetKind.COIN, "Kraken")


async def life(part: Part, instrument: Instrument, now: datetime) -> timedelta:
    return await fresh_until(part, instrument, now) - now


@pytest.mark.parametrize(
    ("symbol", "now", "expected"),
    [
        ("AAPL", "2026-11-25T14:29:59", timedelta(seconds=1)),  # the last second before the open
        ("AAPL", "2026-11-25T14:20", timedelta(minutes=10)),
        ("AAPL", "2026-11-25T14:30", OPEN),
        ("AAPL", "2026-11-25T20:59:59", OPEN),
        ("AAPL", "2026-11-25T21:00", OPEN),  # the closing price may not be in yet
        ("AAPL", "2026-11-25T21:29:59", OPEN),
        ("AAPL", "2026-11-25T21:30", CLOSED),
        ("AAPL", "2026-11-28T16:00", CLOSED),  # a Saturday
        ("AAPL", "2026-12-25T16:00", CLOSED),  # Christmas
        ("AAPL", "2026-11-27T18:29", OPEN),  # the day after Thanksgiving ends at 13:00 in New York
        ("AAPL", "2026-11-27T18:30", CLOSED),
        ("AAPL", "2026-07-01T13:30", OPEN),  # daylight saving time
        ("7203.T", "2026-11-25T02:00", OPEN),
        ("7203.T", "2026-11-25T02:40", CLOSED),  # the lunch break
        ("7203.T", "2026-11-25T04:00", OPEN),
        ("VOD.L", "2026-11-25T08:00", OPEN),
        ("BMW.F", "2026-11-25T18:00", OPEN),  # Frankfurt trades until late, but its calendar ends at 17:30
        ("VOD.L", "2026-11-25T07:50", timedelta(minutes=10)),
    ],
)
async def test_a_quote_is_current_for_15_seconds_until_half_an_hour_after_the_close_else_at_most_15_minutes(
    symbol: str, now: str, expected: timedelta
) -> None:
    assert await life(Part.QUOTE, make_instrument(symbol), at(now)) == expected


@pytest.mark.parametrize("now", ["2026-12-25T16:00", "2026-11-28T03:00", "2026-11-25T15:00"])
async def test_a_coin_is_always_traded(now: str) -> None:
    assert await life(Part.QUOTE, BITCOIN, at(now)) == OPEN


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-25T15:00", "2026-11-25T21:00"),
        ("2026-11-25T21:45", "2026-11-27T14:30"),  # Thanksgiving, then the short day
        ("2026-11-27T14:30", "2026-11-27T14:35"),  # the source may apply a split only now
        ("2026-11-27T14:35", "2026-11-27T18:00"),
        ("2026-11-28T12:00", "2026-11-30T14:30"),
        ("2026-12-24T19:00", "2026-12-28T14:30"),
        ("2026-12-31T22:00", "2027-01-04T14:30"),
    ],
)
async def test_bars_are_current_until_the_next_open_or_close(now: str, expected: str) -> None:
    assert await fresh_until(Part.BARS, make_instrument(), at(now)) == at(expected)


async def test_bars_from_just_after_a_close_are_asked_for_again_when_the_day_has_settled() -> None:
    assert await fresh_until(Part.BARS, make_instrument(), at("2026-11-25T21:00:05")) == at("2026-11-25T21:30")


async def test_bars_of_a_coin_are_current_until_midnight() -> None:
    assert await fresh_until(Part.BARS, BITCOIN, at("2026-12-31T23:59:59")) == at("2027-01-01T00:00")
    assert await fresh_until(Part.BARS, BITCOIN, at("2027-01-01T00:00")) == at("2027-01-01T00:05")
    assert await fresh_until(Part.BARS, BITCOIN, at("2027-01-01T00:05")) == at("2027-01-02T00:00")


async def test_fundamentals_and_what_a_symbol_means_are_current_for_a_day() -> None:
    now = at("2026-11-25T15:00")

    assert await life(Part.FUNDAMENTALS, make_instrument(), now) == timedelta(days=1)
    assert await fresh_until(Part.INSTRUMENT, None, now) == now + timedelta(days=1)


@pytest.mark.parametrize("year", [1, 1500, 1900, 2300, 9999])
@pytest.mark.parametrize("symbol", ["AAPL", "0700.HK", "RELIANCE.NS"])
async def test_a_year_that_no_calendar_knows_has_the_short_life(symbol: str, year: int) -> None:
    now = datetime(year, 6, 1, tzinfo=UTC)

    assert await life(Part.QUOTE, make_instrument(symbol), now) == OPEN
    assert await life(Part.BARS, make_instrument(symbol), now) == timedelta(minutes=15)


async def test_a_calendar_that_ends_with_the_year_is_used_up_to_there() -> None:
    """The Bombay exchange says only for one year when it will be open."""
    bombay = make_instrument("RELIANCE.NS")

    assert await life(Part.QUOTE, bombay, at("2026-06-02T12:00")) == CLOSED
    assert await life(Part.QUOTE, bombay, at("2026-06-02T05:00")) == OPEN


def test_a_market_is_open_from_the_opening_until_the_close() -> None:
    opening, close = at("2026-06-02T13:30"), at("2026-06-02T20:00")
    trading = Trading(opens=(opening,), closes=(close,), day_ends=(close,))

    moments = (opening - timedelta(seconds=1), opening, close - timedelta(seconds=1), close)

    assert [trading.is_open(moment) for moment in moments] == [False, True, True, False]


async def test_without_the_calendars_a_market_is_always_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    monkeypatch.setattr("fiml.market.freshness._loaded", {})

    assert await life(Part.QUOTE, make_instrument(), at("2026-11-28T16:00")) == OPEN
    assert await life(Part.BARS, make_instrument(), at("2026-11-28T16:00")) == timedelta(minutes=15)


async def test_a_market_whose_calendar_is_missing_is_always_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a release of the calendars that is older or newer."""
    monkeypatch.setitem(freshness._CALENDARS_BY_SUFFIX, "L", "NONE")

    assert await life(Part.QUOTE, make_instrument("VOD.L"), at("2026-11-28T16:00")) == OPEN


@pytest.mark.parametrize(
    ("symbol", "exchange", "expected"),
    [
        ("AAPL", "NasdaqGS", "XNYS"),
        ("BRK-B", "NYSE", "XNYS"),
        ("^GSPC", "SNP", "XNYS"),
        ("^FTSE", "FTSE Index", "XLON"),
        ("^N225", "Osaka", "XTKS"),
        ("^GDAXI", "XETRA", "XETR"),
        ("SAP.DE", "XETRA", "XETR"),
        ("MC.PA", "Paris", "XPAR"),
        ("NESN.SW", "Swiss", "XSWX"),
        ("0700.HK", "HKSE", "XHKG"),
        ("SHOP.TO", "Toronto", "XTSE"),
        ("BHP.AX", "ASX", "XASX"),
        ("ASML.AS", "Amsterdam", "XAMS"),
        ("ENI.MI", "Milan", "XMIL"),
        ("SAN.MC", "MCE", "XMAD"),
        ("TCS.NS", "NSE", "XBOM"),
        ("005930.KS", "KSE", "XKRX"),
        ("VOLV-B.ST", "Stockholm", "XSTO"),
        ("X.NOWHERE", "Nowhere", None),
    ],
)
def test_the_calendar_follows_from_the_suffix_then_from_the_exchange(
    symbol: str, exchange: str, expected: str | None
) -> None:
    assert calendar_of(make_instrument(symbol, exchange=exchange)) == expected


def test_every_calendar_that_is_named_exists() -> None:
    from exchange_calendars import get_calendar_names  # noqa: PLC0415 - it brings pandas

    from fiml.market import freshness  # noqa: PLC0415 - for what is its own

    named = {*freshness._CALENDARS_BY_SUFFIX.values(), *freshness._CALENDARS_BY_EXCHANGE.values()}

    assert named <= set(get_calendar_names())
