"""Yahoo's form of a symbol: the exchange's own symbol, with the market's suffix."""

import re

from fiml.core.errors import InvalidInput, echo
from fiml.market.providers.base import MAX_SYMBOL_CHARACTERS, check_choice, to_symbol

# Market -> the suffix of its main exchange.
MARKETS = {
    "US": "",
    "UK": ".L",
    "LSE": ".L",
    "JP": ".T",
    "DE": ".DE",
    "FR": ".PA",
    "CH": ".SW",
    "HK": ".HK",
    "CN": ".SS",
    "TW": ".TW",
    "CA": ".TO",
    "AU": ".AX",
    "NZ": ".NZ",
    "NL": ".AS",
    "BE": ".BR",
    "AT": ".VI",
    "IE": ".IR",
    "PT": ".LS",
    "IT": ".MI",
    "ES": ".MC",
    "IN": ".NS",
    "KR": ".KS",
    "SG": ".SI",
    "SE": ".ST",
    "DK": ".CO",
    "FI": ".HE",
    "NO": ".OL",
    "PL": ".WA",
    "ZA": ".JO",
    "IL": ".TA",
    "BR": ".SA",
    "MX": ".MX",
}
# Suffixes of further exchanges, which a symbol may already have.
_SECOND_SUFFIXES = {
    ".SZ": "CN",
    ".BO": "IN",
    ".KQ": "KR",
    ".V": "CA",
    ".F": "DE",
    ".BE": "DE",
    ".MU": "DE",
    ".SG": "DE",
}
_MARKET_OF_SUFFIX = {suffix: market for market, suffix in reversed(MARKETS.items()) if suffix} | _SECOND_SUFFIXES
SUFFIXES = sorted(_MARKET_OF_SUFFIX)

# Each dot, hyphen and other sign is between letters or digits: otherwise "..", for example, would change Yahoo's path.
_FORM = re.compile(r"\^?[A-Z0-9]+(?:[.=&-][A-Z0-9]+)*", re.ASCII)
_SHARE_CLASS = re.compile(r"([A-Z0-9]+)\.([A-Z]|UN)", re.ASCII)  # UN: a unit of a trust
_HONG_KONG_DIGITS = 4
# Stocks and funds in Shenzhen. In Shanghai, such a code would be that of an index, which needs its suffix.
_SHENZHEN_CODE = re.compile(r"[023][0-9]{5}|1[2568][0-9]{4}", re.ASCII)


def to_yahoo(text: object, market: str = "US") -> str:
    """The symbol in Yahoo's form: VOD in the UK is VOD.L, BRK.B is BRK-B. One with a suffix or a sign is unchanged.

    In China a code without a suffix is Shanghai's or Shenzhen's by its first digit, as for stocks and funds.

    Raises:
        InvalidInput: the symbol is malformed, its market or suffix unknown, or its suffix that of another market.
    """
    wanted = check_choice("market", market, list(MARKETS))
    symbol = to_symbol(text)
    if not _FORM.fullmatch(symbol):
        raise InvalidInput("symbol", f"{echo(text)} is not a symbol", "give letters, digits, . - ^ or =, as in BRK-B")
    if symbol.startswith("^") or "=" in symbol:
        return symbol
    base, suffix = _split(symbol)
    if suffix:
        _check_suffix(symbol, suffix, wanted)
    suffix = suffix or (".SZ" if wanted == "CN" and _SHENZHEN_CODE.fullmatch(base) else MARKETS[wanted])
    if suffix == MARKETS["HK"] and base.isdigit():
        # The exchange writes five digits, and people none of the leading zeros.
        base = base.lstrip("0").zfill(_HONG_KONG_DIGITS)
    return base + suffix


def is_symbol(text: str) -> bool:
    """Whether a text has the form of a symbol at Yahoo."""
    return len(text) <= MAX_SYMBOL_CHARACTERS and _FORM.fullmatch(text) is not None


def _split(symbol: str) -> tuple[str, str]:
    base, dot, end = symbol.rpartition(".")
    if not dot or dot + end in _MARKET_OF_SUFFIX:
        # TECK.B.TO is Yahoo's TECK-B.TO.
        return (base.replace(".", "-"), dot + end) if dot else (symbol, "")
    share_class = _SHARE_CLASS.fullmatch(symbol)
    if share_class:
        return "-".join(share_class.groups()), ""
    raise InvalidInput("symbol", f"{echo(symbol)} has a suffix that Yahoo has no market for", _listed())


def _check_suffix(symbol: str, suffix: str, market: str) -> None:
    at_home = MARKETS["UK"] if market == "LSE" else MARKETS[market]
    is_of_market = suffix == at_home or _MARKET_OF_SUFFIX[suffix] == market
    if market != "US" and not is_of_market:
        raise InvalidInput(
            "symbol",
            f"{echo(symbol)} belongs to the market {_MARKET_OF_SUFFIX[suffix]}, not to {market}",
            f"leave out the suffix or the market; {_listed()}",
        )


def _listed() -> str:
    return f"valid: {', '.join(SUFFIXES)}"
