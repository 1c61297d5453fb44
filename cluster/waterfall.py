"""The ledger as a drawn waterfall: from the sum of baselines down to what was measured. An SVG, to embed or keep.

┌────┐
│    │┌──┐
│    │└──┘┌──┐                 one step down per column; up where replicas did better than their baseline
│    │    └──┘┌────┐
└────┘        └────┘
baselines  ...   measured
"""

from xml.sax.saxutils import escape

from .ledger import UNEXPLAINED, Ledger

WIDTH, HEIGHT = 860, 380
_LEFT, _TOP, _BOTTOM = 64, 54, 92
# Okabe and Ito's colours, which people with any colour vision tell apart.
_TOTAL, _MEASURED, _LOSS, _REST, _GAIN = "#0072B2", "#009E73", "#E69F00", "#999999", "#56B4E9"


def waterfall_svg(ledger: Ledger, title: str, *, simulated: bool = False) -> str:
    """A whole SVG document.

    Args:
        title: what was measured.
        simulated: no tokens were computed, which the drawing then says.
    """
    bars = _bars(ledger)
    top = max(max(start, end) for _, start, end, _ in bars) or 1.0
    step = (WIDTH - _LEFT - 12) / len(bars)
    scale = (HEIGHT - _TOP - _BOTTOM) / top
    floor = HEIGHT - _BOTTOM
    said = f"SIMULATED: {title}" if simulated else title
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f"<title>{escape(said)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(said)}</text>',
        f'<text x="12" y="38" fill="#555">{escape(_subtitle(ledger))}</text>',
        f'<line x1="{_LEFT}" y1="{floor}" x2="{WIDTH - 12}" y2="{floor}" stroke="#333"/>',
    ]
    for index, (name, start, end, colour) in enumerate(bars):
        x, width = _LEFT + index * step, step * 0.72
        high, low = floor - max(start, end) * scale, floor - min(start, end) * scale
        height = max(low - high, 0.75)
        rate = end - start if colour in (_TOTAL, _MEASURED) else start - end
        middle = x + width / 2
        parts += [
            f'<rect x="{x:.1f}" y="{high:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>',
            f'<text x="{middle:.1f}" y="{high - 4:.1f}" text-anchor="middle">{_share(rate, ledger)}</text>',
            f'<text x="{middle:.1f}" y="{floor + 14}" text-anchor="end" '
            f'transform="rotate(-35 {middle:.1f} {floor + 14})">{escape(name)}</text>',
        ]
        if index + 1 < len(bars):
            y = floor - end * scale
            parts.append(
                f'<line x1="{x + width:.1f}" y1="{y:.1f}" x2="{x + step:.1f}" y2="{y:.1f}" stroke="#bbb"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bars(ledger: Ledger) -> list[tuple[str, float, float, str]]:
    """Name, from where to where in tokens/s, colour."""
    bars = [("baselines", 0.0, ledger.baseline, _TOTAL)]
    level = ledger.baseline
    for name, lost in ledger.losses.items():
        colour = _GAIN if lost < 0.0 else _REST if name == UNEXPLAINED else _LOSS
        bars.append((name, level, level - lost, colour))
        level -= lost
    return [*bars, ("measured", 0.0, ledger.measured, _MEASURED)]


def _subtitle(ledger: Ledger) -> str:
    over = f"over {ledger.window_s:.0f} s"
    hole = f"; {ledger.hole_s:.0f} s not accounted for" if ledger.hole_s > 0.0 else ""
    if ledger.efficiency is None:
        return f"{ledger.measured:,.0f} of {ledger.baseline:,.0f} tokens/s {over}; not saturated{hole}"
    return (
        f"{ledger.measured:,.0f} of {ledger.baseline:,.0f} tokens/s {over}: scaling efficiency "
        f"{ledger.efficiency:.1%}{hole}"
    )


def _share(rate: float, ledger: Ledger) -> str:
    return f"{rate / ledger.baseline:.1%}" if ledger.baseline > 0.0 else "-"
