"""Draws lines as SVG, both axes logarithmic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 40, 50
FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#787774")


@dataclass(frozen=True)
class Line:
    """Points of one thing that was measured."""

    name: str
    points: list[tuple[float, float]]


def draw(path: Path, title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> None:
    """Write a plot. A zero on the horizontal axis stands at the left edge, since it has no logarithm."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    across = _Axis(xs, LEFT, WIDTH - RIGHT)
    up = _Axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>',
    ]
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>')
    for value in sorted(set(xs)):
        x = across.place(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,.0f}</text>')
    for number, line in enumerate(lines):
        parts += _drawn(line, COLOURS[number % len(COLOURS)], across, up, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


class _Axis:
    def __init__(self, values: list[float], start: float, end: float) -> None:
        positive = [value for value in values if value > 0]
        self._least, self._most = min(positive), max(positive)
        # A zero has a tenth of the axis for itself.
        inset = 0.1 * (end - start) if any(value == 0 for value in values) else 0.0
        self._zero, self._start, self._end = start, start + inset, end

    def place(self, value: float) -> float:
        if value <= 0:
            return self._zero
        span = math.log(self._most / self._least) or 1.0
        return self._start + math.log(value / self._least) / span * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Ones, twos and fives within what was measured, and at least its ends."""
        powers = range(math.floor(math.log10(self._least)), math.ceil(math.log10(self._most)) + 1)
        found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        within = [value for value in found if self._least <= value <= self._most]
        return within if len(within) > 1 else [round(self._least, 3), round(self._most, 3)]


def _drawn(line: Line, colour: str, across: _Axis, up: _Axis, number: int) -> list[str]:
    places = [(across.place(x), up.place(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    top = TOP + 18 * number
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<rect x="{WIDTH - RIGHT + 12}" y="{top}" width="10" height="10" fill="{colour}"/>',
        f'<text x="{WIDTH - RIGHT + 28}" y="{top + 9}" font-size="11">{escape(line.name)}</text>',
    ]
