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
# The parts of an answer that a question of a depth doesn't ask for, and the delivery of those that it does.
_BEYOND: dict[Depth, dict[str, Any]] = {
    Depth.QUICK: {"technicals": None, "fundamentals": None, "comparisons": [], "not_compared": {}},
    Depth.STANDARD: {"comparisons": [], "not_compared": {}},
    Depth.DEEP: {},
}
_DELIVERED = {Depth.QUICK: {"quote"}, Depth.STANDARD: {"quote", "bars", "fundamentals"}}
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
    """What a session stores of its last looks at a symbol, as an intermediate result.

    Each part of the answer is of the last look that asked for it: a quick look renews the quote, and leaves the
    technicals to be compared with those of the next look that has some. It can answer questions up to `depth`: not with
    comparisons that are older than the technicals.
    """

    kind: AssetKind
    depth: Depth
    looked_at: Moment
    compared_with: list[str]
    answer: MarketAnswer
    earlier: dict[str, Moment] = Field({}, description="when parts were looked at, if that was before looked_at")

    @property
    def is_sample(self) -> bool:
        """Whether the figures come from the sample."""
        return self.answer.quote.source == SAMPLE

    def is_current(self, depth: Depth) -> bool:
        """Whether all parts of an answer of this depth are still current. The sample's always are."""
        parts = as_deep_as(self.answer, depth).delivery.values()
        return self.is_sample or (bool(parts) and all(part.is_current for part in parts))

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


def holding(
    before: Held | None, depth: Depth, instrument: Instrument, found: MarketAnswer, compared: list[str], *, is_hit: bool
) -> Held:
    """What a session should store after a look: what it had `before` (if that was the answer, as of now), or found."""
    now = clock.now()
    held = Held(kind=instrument.kind, depth=depth, looked_at=now, compared_with=compared, answer=found)
    # An answer that was stored before 0.3 lacks the delivery of its parts: nobody could tell whether they are current.
    if before is None or not (is_hit or before.answer.delivery):
        return held
    older = {name: part for name in _BEYOND[depth] if (part := getattr(before.answer, name))}
    earlier = {name: before.earlier.get(name, before.looked_at) for name in older}
    if is_hit:
        return before.model_copy(update={"looked_at": now, "earlier": earlier})
    if depth is Depth.DEEP:
        return held
    answer = found.model_copy(update={**older, "delivery": before.answer.delivery | found.delivery})
    update = {"looked_at": now, "answer": answer, "earlier": earlier}
    return (before if depth is Depth.QUICK else held).model_copy(update=update)


def as_deep_as(answer: MarketAnswer, depth: Depth) -> MarketAnswer:
    """An answer, without the parts that a question of this depth doesn't ask for, and with their ages as of now."""
    now = clock.now()
    wanted = _DELIVERED.get(depth, answer.delivery.keys())
    delivery = {name: part.aged(now) for name, part in answer.delivery.items() if name in wanted}
    return answer.model_copy(update={**_BEYOND[depth], "delivery": delivery})


def since(held: Held, now: MarketAnswer) -> SinceLastLook:
    """What is new in an answer since the last look: figures that changed, and parts that weren't there."""
    before = held.answer.model_dump(mode="json")
    after = now.model_dump(mode="json")
    shared = [name for name in _SECTIONS if before[name] is not None and after[name] is not None]
    changed = [change for name in shared for change in _section_changes(name, before[name], after[name])]
    new = [name for name in _SECTIONS if before[name] is None and after[name] is not None]
    new += ["comparisons"] if now.comparisons and not held.answer.comparisons else []
    return SinceLastLook(
        looked_at=held.looked_at,
        as_of_then=held.answer.quote.as_of.isoformat(),
        changed=changed,
        new_sections=new,
        summary=_summary(held, changed, new, now),
    )


def _summary(held: Held, changed: list[FigureChange], new: list[str], now: MarketAnswer) -> str:
    told = f"{len(changed)} figure{'s' if len(changed) > 1 else ''} changed" if changed else "no figure changed"
    if now.stale_since is not None:
        told += f" as far as is known: the provider fails, and its last figures are of {clock.to_iso(now.stale_since)}"
    elif not changed:
        told += f"; the market date is still {now.quote.as_of.isoformat()}"
    sections = dict.fromkeys(change.figure.partition(".")[0] for change in changed)
    earlier = [f"{name} since {clock.to_iso(held.earlier[name])}" for name in sections if name in held.earlier]
    told += f" ({', '.join(earlier)})" if earlier else ""
    return told + (f"; new: {', '.join(new)}" if new else "")


def _section_changes(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[FigureChange]:
    names = [name for name in now if name not in _NO_FIGURES and before.get(name) != now[name]]
    return [FigureChange(figure=f"{section}.{name}", before=before.get(name), now=now[name]) for name in names]
