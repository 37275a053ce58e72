"""Numbers and lists -> short phrases."""


def pluralize(number: int, noun: str) -> str:
    """Format a count and its noun: "1 key", "2 keys"; no thousands separators."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
