"""Format sizes and keys as short text."""


def format_size(nbytes: int) -> str:
    """Format bytes in B, KiB or MiB; no larger units, so that columns compare at a glance."""
    if nbytes < 1 << 10:
        return f"{nbytes} B"
    if nbytes < 1 << 20:
        return f"{nbytes / (1 << 10):.1f} KiB"
    return f"{nbytes / (1 << 20):,.1f} MiB"


def truncate_middle(text: str, width: int) -> str:
    """Replace the middle of `text` by "..." if it is longer than `width` characters."""
    if len(text) <= width:
        return text
    if width <= 5:
        return text[:width]
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"
