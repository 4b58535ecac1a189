"""A company's figures from Yahoo's quoteSummary."""

from collections.abc import Mapping
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fiml.core.errors import BadData
from fiml.market.models import Fundamentals, Instrument, whole_currency
from fiml.market.providers.texts import clean
from fiml.market.providers.yahoo_figures import NAME, SOURCE, moment_of, number

# Field -> where quoteSummary has it.
_PLACES = {
    "market_cap": (("price", "marketCap"), ("summaryDetail", "marketCap")),
    "pe_ratio": (("summaryDetail", "trailingPE"),),
    "eps": (("defaultKeyStatistics", "trailingEps"),),
    # Both are fractions. The `dividendYield` of Yahoo's quote, of the same name, is in per cent.
    "dividend_yield": (("summaryDetail", "trailingAnnualDividendYield"), ("summaryDetail", "dividendYield")),
    "revenue": (("financialData", "totalRevenue"),),
}
_EXPECTED_YIELD = "dividend_yield is the one expected for the coming year, not that of the last twelve months"


def fundamentals_of(instrument: Instrument, answer: Any) -> Fundamentals:
    """The company's figures in an answer of quoteSummary, in the currency of its price (pounds if that is in pence).

    The dividend yield is that of the last twelve months, or else the expected one, and then the note says so. Yahoo
    computes the former by dividing dividends in the currency of the company's reports by the price: if that is in
    another currency, or in pence, only the expected one is used.

    Raises:
        BadData: the answer doesn't have the form of one.
    """
    modules = _modules(answer)
    currency = whole_currency(instrument.currency)
    reported = clean(_module(modules, "financialData").get("financialCurrency")) or currency
    is_past_yield_wrong = not currency == instrument.currency == reported
    figures: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for field in _PLACES:
        figures[field], missing[field] = _figure(modules, field, is_past_yield_wrong=is_past_yield_wrong)
    past_yield = number(_module(modules, "summaryDetail").get("trailingAnnualDividendYield"))
    is_expected = figures["dividend_yield"] is not None and (is_past_yield_wrong or past_yield is None)
    if reported != currency and figures["revenue"] is not None:
        figures["revenue"], missing["revenue"] = None, f"Yahoo reports it in {reported}, not in {currency}"
    figures["sector"] = clean(_module(modules, "assetProfile").get("sector")) or None
    figures["as_of"] = _day(modules)
    missing |= {"sector": "Yahoo names none", "as_of": "Yahoo doesn't date these figures"}
    return Fundamentals(
        symbol=instrument.symbol,
        source=SOURCE,
        currency=currency,
        note=_EXPECTED_YIELD if is_expected else None,
        missing={field: missing[field] for field, figure in figures.items() if figure is None},
        **figures,
    )


def _modules(answer: Any) -> Mapping[str, Any]:
    try:
        summary = answer["quoteSummary"]
        if summary["result"] is None and summary.get("error"):
            raise BadData(NAME, "an error in place of a summary")
        modules = (summary["result"] or [{}])[0]
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise BadData(NAME, f"no summary: {type(exc).__name__}") from exc
    if not isinstance(modules, dict):
        raise BadData(NAME, "the summary is not an object")
    return modules


def _module(modules: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    module = modules.get(name)
    return module if isinstance(module, dict) else {}


def _figure(modules: Mapping[str, Any], field: str, *, is_past_yield_wrong: bool) -> tuple[float | None, str]:
    """The figure and an empty text, or `None` and the reason."""
    places = _PLACES[field][1:] if field == "dividend_yield" and is_past_yield_wrong else _PLACES[field]
    values = [_module(modules, module).get(name) for module, name in places]
    sent = [value for value in values if value not in (None, {})]
    numbers = [figure for figure in map(number, sent) if figure is not None]
    if not numbers:
        return None, "what Yahoo sent is not a number" if sent else "Yahoo has none for this symbol"
    if field == "dividend_yield" and not 0 <= numbers[0] <= 1:
        return None, "what Yahoo sent is not a fraction"
    return numbers[0], ""


def _day(modules: Mapping[str, Any]) -> date | None:
    """The day of the market's last price, in the exchange's time zone."""
    moment = moment_of(_module(modules, "price").get("regularMarketTime"))
    try:
        zone = ZoneInfo(clean(_module(modules, "quoteType").get("timeZoneFullName")) or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
    return None if moment is None else moment.astimezone(zone).date()
