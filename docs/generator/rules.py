"""The registry of rules -> docs/rules.md."""

from ckptool.rules import RULES, Rule

FAMILIES = {
    "CK1": "State of a module",
    "CK2": "A checkpoint against a module",
    "CK3": "Files and containers",
    "CK4": "Values",
    "CK5": "Tied and shared tensors",
    "CK6": "Shards",
    "CK7": "assign=True and the meta device",
    "CK8": "Releases, policies and revisions",
    "CK9": "Optimizer state",
}
MADE = "Made from the code by `docs/generate.py`. `ckptool rule CODE` shows the same."


def page() -> str:
    lines = ["# Rules", "", MADE, ""]
    for family, meaning in FAMILIES.items():
        members = [rule for code, rule in sorted(RULES.items()) if code.startswith(family)]
        if members:
            lines += [f"## {family}xx: {meaning}", "", "| rule | level | name |", "|---|---|---|"]
            lines += [_row(rule) for rule in members]
            lines.append("")
            for rule in members:
                lines += _section(rule)
    return "\n".join(lines)


def _row(rule: Rule) -> str:
    link = f"[{rule.code}](#{rule.code.lower()}-{rule.name})"
    return f"| {link} | {_level(rule)} | {rule.name.replace('-', ' ')} |"


def _level(rule: Rule) -> str:
    gate = f"; {rule.gate.word} in `ckptool gate`" if rule.gate is not None else ""
    return f"{rule.level.word}{gate}"


def _section(rule: Rule) -> list[str]:
    lines = [f"### {rule.code} {rule.name}", "", f"**Level**: {_level(rule)}", ""]
    lines += [
        f"**Message**: {_escape(rule.general_message)}",
        "",
        f"**Why it matters**: {rule.why}",
        "",
    ]
    if rule.example:
        lines += ["**Fires for**:", "", "```python", rule.example, "```", ""]
    return [*lines, f"**Fix**: {_escape(rule.general_fix)}", ""]


def _escape(text: str) -> str:
    return text.replace("<", "&lt;")
