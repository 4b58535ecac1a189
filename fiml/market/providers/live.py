"""Live market figures, from the sources whose extras are installed."""

import asyncio
from functools import partial
from importlib.util import find_spec

from fiml.core.errors import NotSupported, Unavailable
from fiml.market.models import AssetKind, Bars, Fundamentals, Instrument, Quote
from fiml.market.providers.base import MarketProvider

SOURCE = "live"
# Extra -> the packages of it that the providers load.
_PACKAGES = {"yahoo": ("yfinance", "stamina", "aiolimiter"), "ccxt": ("ccxt", "stamina", "aiolimiter")}

# Less than MarketService allows for a fetch: a guard that is cancelled from outside learns nothing about its provider.
_ATTEMPT_TIMEOUT_S = 3
_TIMEOUT_S = 5
_QUESTIONS_PER_S = 20
# Two exchanges must fit into one fetch of an instrument. Figures come from one, but may have to wait for their turn.
_EXCHANGE_TIMEOUT_S = 3
_FIGURES_TIMEOUT_S = 6.5


class LiveProvider:
    """Equities and indices from one source, coins from another, as one `MarketProvider`.

    If the source for a question isn't installed, `NotSupported` names the extra to install.
    """

    source = SOURCE

    def __init__(self, equities: MarketProvider | None, coins: MarketProvider | None) -> None:
        self._equities = equities
        self._coins = coins

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        return await self._of(kind).instrument(symbol, kind, market=market, exchange=exchange, pair=pair)

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Equities and coins, alternating; a source that is away is left out, unless none answers."""
        sources = self._sources()
        answers = await asyncio.gather(*(one.search(text, limit=limit) for one in sources), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        found = [answer for answer in answers if not isinstance(answer, BaseException)]
        for failure in failures:
            if not found or not isinstance(failure, Unavailable | NotSupported):
                raise failure
        longest = max(map(len, found), default=0)
        return [answer[place] for place in range(longest) for answer in found if place < len(answer)][:limit]

    async def quote(self, instrument: Instrument) -> Quote:
        return await self._of(instrument.kind).quote(instrument)

    async def bars(self, instrument: Instrument) -> Bars:
        return await self._of(instrument.kind).bars(instrument)

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        return await self._of(instrument.kind).fundamentals(instrument)

    async def aclose(self) -> None:
        """Close the connections of both sources; may be called twice."""
        await asyncio.gather(*(one.aclose() for one in self._sources()))

    def _sources(self) -> list[MarketProvider]:
        return [one for one in (self._equities, self._coins) if one is not None]

    def _of(self, kind: AssetKind) -> MarketProvider:
        is_coin = kind is AssetKind.COIN
        source = self._coins if is_coin else self._equities
        if source is None:
            what, extra = ("coins", "ccxt") if is_coin else ("equities and indices", "yahoo")
            raise NotSupported(f"no live source of {what} is installed", f"install one: pip install 'fiml[{extra}]'")
        return source


def live_extras() -> list[str]:
    """The installed extras for live figures; they are not loaded."""
    return [extra for extra, packages in _PACKAGES.items() if all(find_spec(package) for package in packages)]


def open_live() -> LiveProvider:
    """Live figures from the sources whose extras are installed."""
    extras = live_extras()
    return LiveProvider(_open_yahoo() if "yahoo" in extras else None, _open_coins() if "ccxt" in extras else None)


def _open_yahoo() -> MarketProvider:
    from fiml.market.providers.guard import Guard  # noqa: PLC0415 - needs the extra
    from fiml.market.providers.yahoo import YahooProvider  # noqa: PLC0415 - as above
    from fiml.market.providers.yahoo_client import THREADS  # noqa: PLC0415 - as above

    rate = (_QUESTIONS_PER_S, 1)
    guard = Guard("Yahoo", attempt_timeout_s=_ATTEMPT_TIMEOUT_S, timeout_s=_TIMEOUT_S, rate=rate, at_once=THREADS)
    return YahooProvider(guard=guard)


def _open_coins() -> MarketProvider:
    from fiml.market.providers.coin_exchange import exchange_guard  # noqa: PLC0415 - needs the extra
    from fiml.market.providers.coins import CoinProvider  # noqa: PLC0415 - as above

    return CoinProvider(
        guard=partial(exchange_guard, attempt_timeout_s=_EXCHANGE_TIMEOUT_S, timeout_s=_FIGURES_TIMEOUT_S, attempts=2),
        markets_within_s=_EXCHANGE_TIMEOUT_S,
    )
