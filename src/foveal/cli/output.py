"""What the verbs share: how numbers and tables are printed."""

import sys
from collections.abc import Sequence

NANO = "the small model inside"


def size(count: int) -> str:
    """A number of bytes for people, in powers of 1000 as disks and papers count: 4.42 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:,.2f} GB"


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows in columns of equal width, indented; the first `left` columns left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def progress(done: int, total: int, what: str, *, last: str = "\n") -> None:
    """Draws a bar over the one before it, on standard error; `last` closes the full one."""
    filled = 24 * done // total
    bar = "#" * filled + "-" * (24 - filled)
    print(
        f"\rfoveal: [{bar}] {done:,} of {total:,}{what}", end="" if done < total else last, file=sys.stderr, flush=True
    )
