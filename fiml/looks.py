"""What a session stores of its last look at an instrument, and what has changed by the next one."""

import json
from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from fiml.core import clock
from fiml.core.model import Model
from fiml.market.models import AssetKind, Depth, Instrument, MarketAnswer, Moment, Quote
from fiml.market.providers.base import SAMPLE
from fiml.market.service import NOT_NOW
from fiml.sessions.models import Session
from fiml.sessions.values import ANSWER_PREFIX

_DEPTHS = list(Depth)
_SECTIONS = ("quote", "technicals", "fundamentals")
_NO_FIGURES = ("missing", "market_time", "note", "price_label", "bars_used", "volatility_days")


class FigureChange(Model):
    """A figure that has changed since the last look."""

    figure: str
    before: float | str | None
    now: float | str | None


class SinceLastLook(Model):
    """What has changed since the session last looked at the symbol."""

    looked_at: datetime
    as_of_then: str = Field(description="market date of the figures at the last look")
    changed: list[FigureChange]
    new_sections: list[str] = Field(description="parts of the answer that the last look didn't have")
    summary: str


class Held(Model):
    """What a session stores of its last look at a symbol, as an intermediate result."""

    kind: AssetKind
    depth: Depth
    looked_at: Moment
    compared_with: list[str]
    answer: MarketAnswer

    @property
    def is_sample(self) -> bool:
        """Whether the figures come from the sample."""
        return self.answer.quote.source == SAMPLE

    def is_current(self, depth: Depth) -> bool:
        """Whether all parts of an answer of this depth are still current. The sample's always are."""
        parts = as_deep_as(self.answer, depth).delivery.values()
        now = clock.now()
        return self.is_sample or (
            bool(parts) and all(part.fresh_until is not None and now < part.fresh_until for part in parts)
        )

    def is_of(self, instrument: Instrument) -> bool:
        """Whether it is about this instrument. Exchange and currency must be the same too, since a coin has several."""
        quote = self.answer.quote
        same_place = quote.exchange == instrument.exchange and quote.currency == instrument.currency
        return self.kind is instrument.kind and same_place

    def answers(self, depth: Depth, others: list[str]) -> bool:
        """Whether it has every figure that is asked for, and all of them are current."""
        is_deep_enough = _DEPTHS.index(self.depth) >= _DEPTHS.index(depth)
        is_compared = depth is not Depth.DEEP or (set(self.compared_with) == set(others) and not self._lacks_others())
        return is_deep_enough and is_compared and self.is_current(depth)

    def _lacks_others(self) -> bool:
        """Whether another could not be compared that perhaps can be now."""
        return any(reason.startswith(NOT_NOW) for reason in self.answer.not_compared.values())


def result_key(of: Instrument | Quote) -> str:
    """The key of a session's intermediate results for the last answer about an instrument."""
    place = f"/{of.currency}@{of.exchange}" if of.kind is AssetKind.COIN else ""
    return f"{ANSWER_PREFIX}{of.symbol}{place}"


def held_in(session: Session, instrument: Instrument, *, is_sample: bool) -> Held | None:
    """The session's last look at an instrument, or `None`; the sample's figures are never compared with live ones."""
    stored = session.state.get_intermediate_result(result_key(instrument))
    if stored is None:
        # Up to 0.3, all markets of a coin shared one entry.
        stored = session.state.get_intermediate_result(f"{ANSWER_PREFIX}{instrument.symbol}")
    if stored is None:
        return None
    try:
        held = Held.model_validate_json(json.dumps(stored))
    except ValidationError:
        # The key has another value, or one of another version: treat it as if the session had not looked yet.
        return None
    return held if held.is_sample == is_sample and held.is_of(instrument) else None


def holding(hit: Held | None, depth: Depth, instrument: Instrument, found: MarketAnswer, compared: list[str]) -> Held:
    """What a session should store after an answer: the look that gave it (`hit`), as of now, or what was found."""
    if hit is not None:
        return hit.model_copy(update={"looked_at": clock.now()})
    return Held(kind=instrument.kind, depth=depth, looked_at=clock.now(), compared_with=compared, answer=found)


def as_deep_as(answer: MarketAnswer, depth: Depth) -> MarketAnswer:
    """An answer, without the parts that a question of this depth doesn't ask for."""
    if depth is Depth.DEEP:
        return answer
    without: dict[str, Any] = {"comparisons": [], "not_compared": {}}
    parts = {"quote", "bars", "fundamentals"}
    if depth is Depth.QUICK:
        without |= {"technicals": None, "fundamentals": None}
        parts = {"quote"}
    without["delivery"] = {name: part for name, part in answer.delivery.items() if name in parts}
    return answer.model_copy(update=without)


def since(held: Held, now: MarketAnswer) -> SinceLastLook:
    """What is new in an answer since the last look: figures that changed, and parts that weren't there."""
    before = held.answer.model_dump(mode="json")
    after = now.model_dump(mode="json")
    shared = [name for name in _SECTIONS if before[name] is not None and after[name] is not None]
    changed = [change for name in shared for change in _section_changes(name, before[name], after[name])]
    new = [name for name in _SECTIONS if before[name] is None and after[name] is not None]
    new += ["comparisons"] if now.comparisons and not held.answer.comparisons else []
    as_of = held.answer.quote.as_of.isoformat()
    count = f"{len(changed)} figure{'s' if len(changed) > 1 else ''} changed"
    summary = count if changed else f"no figure changed; the market date is still {as_of}"
    summary += f"; new: {', '.join(new)}" if new else ""
    return SinceLastLook(looked_at=held.looked_at, as_of_then=as_of, changed=changed, new_sections=new, summary=summary)


def _section_changes(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[FigureChange]:
    names = [name for name in now if name not in _NO_FIGURES and before.get(name) != now[name]]
    return [FigureChange(figure=f"{section}.{name}", before=before.get(name), now=now[name]) for name in names]
