"""Elements of an HTML page: escaped tags, tables, line charts, bars. No scripts, no network access."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence

Number = int | float
Points = Sequence[tuple[Number, Number]]

_WIDTH, _HEIGHT = 460, 230  # of a chart, in CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 24  # its margins
_MOST_POINTS = 400  # per line; more are averaged
_SMALLEST, _LARGEST = 1e-100, 1e100  # range of values; beyond, sums and ratios may overflow
_MOST_DOTS = 40  # maximum number of points drawn as dots, which show their value on mouse-over

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2127; --soft: #667; --rule: #d9dce1; --panel: #f6f7f9;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #b58900; --c5: #56b4e9;
  --good: #2a9d5c; --jitter: #a6c34c; --inversion: #e9a13b; --swap: #8a6fd1; --miss: #d1495b; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --text: #e4e7eb; --soft: #98a1ac; --rule: #353b43;
  --panel: #1e2227; --c0: #4aa8e0; --c1: #f08a3c; --c2: #35c79a; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1060px; padding: 24px 20px 60px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere } h2 { font-size: 19px; margin: 40px 0 10px }
h3 { font-size: 15px; margin: 22px 0 8px }
p { margin: 6px 0 10px; max-width: 75ch } .soft { color: var(--soft) } a { color: var(--c0) }
.note { border-left: 4px solid var(--c4); background: var(--panel); padding: 8px 12px; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th { color: var(--soft); font-weight: 600 }
tr.total td { font-weight: 600 } .text td { text-align: left; white-space: normal; overflow-wrap: anywhere }
.text th { text-align: left } .text td:first-child { white-space: nowrap }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 20px 28px }
figure { margin: 0; min-width: 0 } figcaption { font-size: 13px; overflow-wrap: anywhere }
.chart figcaption { font-weight: 600 }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif }
svg text { fill: var(--soft) } .line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.rule { stroke: var(--rule); stroke-width: 1 }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; margin-bottom: 12px }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px }
.bar { display: flex; width: 180px; height: 12px; border-radius: 2px; overflow: hidden; background: var(--panel) }
.bar i { display: block } .bar.large { width: 100%; max-width: 620px; height: 20px; margin: 8px 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px }
.pictures img { width: 100%; height: auto; display: block; border-radius: 3px }
details { margin-top: 40px } summary { cursor: pointer; font-weight: 600; font-size: 19px }
pre { background: var(--panel); padding: 12px; overflow-x: auto; font-size: 12.5px }
@media (max-width: 600px) { body { padding: 14px 12px 40px } .text td:first-child { white-space: normal }
  .headed, .headed tbody, .headed tr { display: block } .headed tr:first-child { display: none }
  .headed tr { padding: 4px 0; border-bottom: 1px solid var(--rule) } .headed td { display: inline-block; border: 0;
  padding: 0 12px 0 0 } .headed td:first-child { display: block; font-weight: 600 }
  .headed td:not(:first-child)::before { content: attr(data-name) " "; color: var(--soft) } }
@media print { details, figure, tr { break-inside: avoid } }
"""


class Html(str):
    """Text that is already HTML; all other text is escaped when added to a tag."""


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; contents are escaped unless `Html`. In attribute names, a final `_` is removed, others become `-`."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{pairs}>{join(content)}</{name}>")


def join(content: Iterable[object]) -> Html:
    """Concatenates pieces, escaped unless they are `Html`."""
    return Html("".join(piece if isinstance(piece, Html) else html.escape(str(piece)) for piece in content))


def words(name: str) -> str:
    """A name of the code, as words: `left_ankle` as `left ankle`."""
    return name.replace("_", " ")


def page(title: str, *content: Html) -> str:
    """A complete page; browsers are told to run no scripts and load nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag("title", title), tag("style", Html(_STYLE))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{join(head)}\n</head>\n<body>\n" + "\n".join(content) + "\n</body>\n</html>\n"
    )


def note(*content: object) -> Html:
    """A highlighted remark."""
    return tag("p", *content, class_="note")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, kind: str = "", total: bool = False) -> Html:
    """Rows under an optional header; `kind` "text": cells are words, not numbers; `total`: the last row is a sum.

    On narrow screens a row below a header becomes a paragraph, in which each cell follows its column's name.
    """
    rows = list(rows)
    lines = [tag("tr", *(tag("th", cell) for cell in head))] if head else []
    for number, row in enumerate(rows, start=1):
        names = [{"data_name": name} if name else {} for name in head] or [{}] * len(row)
        cells = [tag("td", cell, **name) for cell, name in zip(row, names, strict=True)]
        lines.append(tag("tr", *cells, class_="total" if total and number == len(rows) else ""))
    return tag("div", tag("table", *lines, class_=f"{kind} headed" if head else kind), class_="wide")


def picture(jpeg: bytes, caption: str) -> Html:
    """An image embedded in the page."""
    source = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return tag("figure", Html(f'<img alt="{html.escape(caption)}" src="{source}">'), tag("figcaption", caption))


def legend(colours: Mapping[str, str]) -> Html:
    """Names with their CSS colours."""
    items = (tag("span", tag("i", style=f"background:{colour}"), name) for name, colour in colours.items())
    return tag("div", *items, class_="legend")


def bar(shares: Mapping[str, Number], colours: Mapping[str, str], large: bool = False) -> Html:
    """A bar of shares of 1, in the colours of their names."""
    parts = (
        tag("i", style=f"width:{100 * share:.2f}%;background:{colours[name]}", title=f"{name} {share:.1%}")
        for name, share in shares.items()
        if share > 0
    )
    return tag("div", *parts, class_="bar large" if large else "bar")


def chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    log: bool = False,
    limits: tuple[Number, Number] | None = None,
    unit: str = "step",
) -> Html:
    """Lines over steps or epochs.

    Args:
      title: above the chart.
      lines: (step, value) by name. Values that are not finite (and for `log` not above 0) are omitted; lines of more
        than 400 points are averaged over neighbours.
      log: whether the value axis is logarithmic; otherwise it includes 0.
      limits: of the value axis; None: those of the values.
      unit: "step" or "epoch".
    """
    shown = {name: _thinned([p for p in points if _drawable(p[1], log)]) for name, points in lines.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return tag(
            "figure", tag("figcaption", title), tag("p", "Nothing was logged yet.", class_="soft"), class_="chart"
        )
    steps, values = zip(*(point for points in shown.values() for point in points), strict=True)
    x_axis = _Axis.of(min(0, *steps), max(steps), False, _LEFT, _WIDTH - _RIGHT)
    low, high = limits or (min(values), max(values))
    if not log:
        low, high = min(low, 0), max(high, 0)
    y_axis = _Axis.of(low, high, log, _HEIGHT - _BOTTOM, _TOP)
    colours = {name: f"var(--c{number % 6})" for number, name in enumerate(shown)}
    parts = [*_grid(x_axis, y_axis, unit)]
    for name, points in shown.items():
        places = [(x_axis.place(step), y_axis.place(value)) for step, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(tag("polyline", points=path, class_="line", style=f"stroke:{colours[name]}"))
        if len(points) <= _MOST_DOTS:
            for (x, y), (step, value) in zip(places, points, strict=True):
                text = tag("title", f"{name}: {value:.5g} at {unit} {step:,.0f}")
                parts.append(tag("circle", text, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, style=f"fill:{colours[name]}"))
    drawing = tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    names = legend(colours) if len(colours) > 1 else ""
    return tag("figure", tag("figcaption", title), drawing, names, class_="chart")


class _Axis:
    """Maps values from `low` to `high` to positions in the drawing from `start` to `end`."""

    def __init__(self, low: Number, high: Number, log: bool, start: Number, end: Number, ticks: list[float]):
        self._low, self._high, self._log, self._start, self._end = low, high, log, start, end
        self.ticks = [tick for tick in ticks if low <= tick <= high]

    @classmethod
    def of(cls, low: Number, high: Number, log: bool, start: Number, end: Number) -> _Axis:
        if not high - low > 1e-9 * max(abs(low), abs(high)):  # one value
            low, high = (low / 2, high * 2) if log else (low - abs(low or 1) / 2, high + abs(high or 1) / 2)
        if log:
            return cls(low, high, True, start, end, _log_ticks(low, high))
        return cls(low, high, False, start, end, _ticks(low, high))

    def place(self, value: Number) -> float:
        if self._log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)


def _grid(x_axis: _Axis, y_axis: _Axis, unit: str) -> Iterable[Html]:
    below = _HEIGHT - _BOTTOM + 16
    yield tag("text", unit, x=_LEFT - 12, y=below, text_anchor="end")
    for tick in y_axis.ticks:
        y = f"{y_axis.place(tick):.1f}"
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="rule")
        yield tag("text", f"{tick:.4g}", x=_LEFT - 6, y=y, text_anchor="end", dominant_baseline="middle")
    for tick in x_axis.ticks:
        yield tag("text", f"{tick:,.10g}", x=f"{x_axis.place(tick):.1f}", y=below, text_anchor="middle")


def _ticks(low: Number, high: Number) -> list[float]:
    """Three to six round numbers."""
    power = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(factor * power for factor in (5, 2, 1, 0.5) if factor * power <= (high - low) / 3)
    return [
        round(float(number * step), 12 - math.floor(math.log10(step))) for number in _between(low / step, high / step)
    ]


def _log_ticks(low: Number, high: Number) -> list[float]:
    """Round numbers for a range of about a decade; otherwise powers of ten, or every few of those."""
    if high < 4 * low:
        return _ticks(low, high)
    powers = _between(math.log10(low) - 1, math.log10(high))
    if high < 100 * low:
        return [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    return [float(f"1e{power}") for power in powers][:: max(1, len(powers) // 5)]


def _between(low: Number, high: Number) -> range:
    return range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)


def _drawable(value: Number, log: bool) -> bool:
    size = abs(value)
    return (_SMALLEST < size < _LARGEST and (value > 0 or not log)) or (size == 0 and not log)


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` points: means over equal numbers of neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(value for _, value in part) / len(part)) for part in parts]
