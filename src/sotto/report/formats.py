"""How numbers are written in a report."""

from sotto.metrics.errors import Interval


def count(value: int) -> str:
    """37184000 -> "37.2M"."""
    return "".join(scaled(value, ("", "k", "M", "B")))


def flops(value: int) -> str:
    """36900000000 -> "36.9 GFLOPs"."""
    return "{} {}FLOPs".format(*scaled(value, ("", "k", "M", "G", "T", "P")))


def size(value: int) -> str:
    """Bytes in powers of 1000: 3700000 -> "3.7 MB"."""
    return "{} {}B".format(*scaled(value, ("", "k", "M", "G", "T")))


def scaled(value: int, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """The number below 1000 that stands before a prefix, and the prefix."""
    number, text, chosen = float(value), str(value), prefixes[0]
    for prefix in prefixes[1:]:
        if float(text) < 1000:
            break
        number /= 1000
        text, chosen = decimal(number), prefix
    return text, chosen


def decimal(number: float) -> str:
    """One decimal, and none from 100 on."""
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}"


def latency(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    if seconds < 0.001:
        return f"{1000 * seconds:.2f} ms"
    return f"{decimal(1000 * seconds)} ms" if seconds < 0.9995 else f"{decimal(seconds)} s"


def duration(seconds: float) -> str:
    """200 -> "3 min 20 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def rate(fraction: float) -> str:
    """0.021 -> "2.1 %"."""
    return f"{100 * fraction:.1f} %"


def points(difference: float) -> str:
    """A difference of two rates in percentage points: 0.003 -> "+0.3", and 0.0003 -> "+0.03" rather than 0.0."""
    text = f"{100 * difference:+.1f}"
    if float(text) == 0:
        text = f"{100 * difference:+.2f}"
    return text if float(text) else "0.0"


def share(part: float, whole: float) -> str:
    """(41, 100) -> "41 %". Only what is equal is "100 %"; below 1 % there is a decimal."""
    percent = 100 * part / whole
    decimals = 1 if part and percent < 1 else 0
    while part != whole and decimals < 2 and round(percent, decimals) == 100:
        decimals += 1
    return f"{percent:.{decimals}f} %"


def ratio(part: float, whole: float) -> str:
    """(3, 2) -> "1.50×"."""
    return f"{part / whole:.2f}×"


def rate_interval(interval: Interval) -> str:
    """Without the sign for per cent: "1.2 to 2.8"."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def points_interval(interval: Interval) -> str:
    """As in "-0.1 to +0.7"."""
    return f"{points(interval.low)} to {points(interval.high)}"
