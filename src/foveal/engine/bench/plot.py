"""The report of `foveal bench` as a picture: how near each phase is to its roof, and decoding as the context grows."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foveal.engine.bench.phases import Report, Timing

WIDTH_PX, ROW_PX, LEFT_PX, EDGE_PX, CHART_PX = 1000, 34, 330, 40, 260
TEXT_PX = 14
INK, GRID, BORDER = (40, 40, 40), (225, 225, 225), (150, 150, 150)
COLOURS = {"memory": (30, 90, 200), "products": (200, 110, 30), None: (150, 150, 150)}


def plot(report: Report, path: Path) -> None:
    """Writes a PNG."""
    bars = [t for t in report.timings if t.share is not None]
    growth = grown(report.timings)
    height = 2 * EDGE_PX + ROW_PX * (len(bars) + 1) + (CHART_PX + EDGE_PX if len(growth) > 1 else 0)
    image = Image.new("RGB", (WIDTH_PX, height), "white")
    pen = ImageDraw.Draw(image)
    pen.font = ImageFont.load_default(TEXT_PX)
    pen.text((16, 14), f"{report.model}, {report.dtype}, {report.device}, threads: {report.threads}", fill=INK)
    top = _bars(pen, EDGE_PX, bars, report)
    if len(growth) > 1:
        _growth(pen, top + EDGE_PX, growth)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def grown(timings: Sequence[Timing]) -> list[tuple[int, Timing]]:
    """(context, timing) of the phases that decode alone after some tokens."""
    return [(t.context_tokens, t) for t in timings if t.context_tokens is not None]


def _bars(pen: ImageDraw.ImageDraw, top: int, bars: Sequence[Timing], report: Report) -> int:
    right = WIDTH_PX - 170
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT_PX + share * (right - LEFT_PX)
        pen.line((x, top, x, top + ROW_PX * len(bars)), fill=BORDER if share == 1 else GRID)
        pen.text((x - 12, top + ROW_PX * len(bars) + 4), f"{share:.0%}", fill=INK)
    for number, timing in enumerate(bars):
        y = top + ROW_PX * number
        share = min(1.1, timing.share or 0.0)
        pen.rectangle((LEFT_PX, y + 7, LEFT_PX + share * (right - LEFT_PX), y + ROW_PX - 9), fill=COLOURS[timing.roof])
        pen.text((16, y + 10), f"{timing.phase}: {timing.detail}", fill=INK)
        pen.text((right + 45, y + 10), f"{timing.rate:,.4g} {timing.unit}/s", fill=INK)
    memory, products = report.roofs.read_bytes_s / 1e9, report.roofs.product_flop_s / 1e9
    y = top + ROW_PX * len(bars) + 20
    pen.text((16, y), f"blue: memory roof, {memory:.1f} GB/s", fill=COLOURS["memory"])
    pen.text((LEFT_PX, y), f"orange: product roof, {products:,.0f} GFLOP/s", fill=COLOURS["products"])
    return y


def _growth(pen: ImageDraw.ImageDraw, top: int, points: Sequence[tuple[int, Timing]]) -> None:
    left, right, high, low = 90, WIDTH_PX - EDGE_PX, top + 26, top + CHART_PX - 30
    most = rounded_up(1000 * max(t.seconds for _, t in points)) / 1000
    last = max(c for c, _ in points)

    def at(context: int | float, seconds: float) -> tuple[float, float]:
        return left + context / last * (right - left), low - seconds / most * (low - high)

    pen.text((16, top), "milliseconds for one more token, over the tokens that are there (grey: the roof)", fill=INK)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(0, share * most)[1]
        pen.line((left, y, right, y), fill=GRID)
        pen.text((16, y - 6), f"{1000 * share * most:.3g}", fill=INK)
        x = at(share * last, 0.0)[0]
        pen.text((x - 14, low + 8), f"{share * last:,.0f}", fill=INK)
    pen.rectangle((left, high, right, low), outline=BORDER)
    pen.line([at(c, t.bound_s or 0.0) for c, t in points], fill=COLOURS[None], width=2)
    pen.line([at(c, t.seconds) for c, t in points], fill=COLOURS["memory"], width=2)
    for context, timing in points:
        x, y = at(context, timing.seconds)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS["memory"])


def rounded_up(value: float) -> float:
    """The next of 1, 2, 4, 6 and 8 times a power of ten, whose quarters are short numbers."""
    step = 10.0 ** math.floor(math.log10(value))
    return next((n * step for n in (1, 2, 4, 6, 8) if n * step >= value), 10 * step)
