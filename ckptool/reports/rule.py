"""RuleReport: the description of one rule."""

from html import escape

from msgspec import Struct


class RuleReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    why: str
    fix: str
    message: str
    example: str
    gate: str
    """Level in `ckptool gate`, "" if it is the same."""

    def _repr_markdown_(self) -> str:
        """Return the description as Markdown, which a notebook shows."""
        parts = [f"### {self.code} {self.name} ({self.level})", self.message, self.why]
        parts += [f"```python\n{self.example}\n```"] if self.example else []
        return "\n\n".join([*parts, f"Fix: {self.fix}"])

    def _repr_html_(self) -> str:
        """Return the description as HTML, which a notebook shows."""
        head = f"<h3>{escape(self.code)} {escape(self.name)} ({escape(self.level)})</h3>"
        example = f"<pre>{escape(self.example)}</pre>" if self.example else ""
        texts = "".join(f"<p>{escape(text)}</p>" for text in (self.message, self.why))
        return f"{head}{texts}{example}<p>Fix: {escape(self.fix)}</p>"
