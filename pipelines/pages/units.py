"""Numbers as people read them, on pages and on terminals alike."""

MINUTE_S, HOUR_S = 60, 3600
_SIZES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def amount(value: float | None) -> str:
    """A number: thousands apart, three digits of a fraction; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int) or value >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def signed(value: float) -> str:
    """A measured number of either sign, four digits of it, with a true minus."""
    return f"{value:.4g}".replace("-", "\u2212")


def share(value: float | None) -> str:
    """A share of 1 in percent; what is not all or nothing never reads so."""
    if value is None:
        return ""
    if value in (0, 1) or 0.1 <= value <= 0.99 or value >= 1.1:
        return f"{value:.0%}".replace("%", " %")
    if value < 0.0005:
        return "<0.1 %"
    if 0.9995 <= value < 1:
        return ">99.9 %"
    return f"{value:.1%}".replace("%", " %")


def span(seconds: float | None) -> str:
    """A time: milliseconds to hours, by its size; nothing for None."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.9995:
        return "<0.01 ms" if seconds < 1e-5 else f"{seconds * 1000:.3g} ms"
    if seconds < 10 * MINUTE_S:
        return f"{seconds:.3g} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.1f} min"
    return f"{seconds / HOUR_S:,.1f} h"


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks are sold; nothing for None."""
    if count is None:
        return ""
    value, unit = float(count), _SIZES[0]
    for larger in _SIZES[1:]:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
