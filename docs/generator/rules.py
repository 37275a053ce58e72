"""The registry of rules -> docs/rules.md."""

from ckptool.rules import RULES

FAMILIES = {
    "CK1": "State of a module",
    "CK2": "A checkpoint against a module",
    "CK3": "Files and containers",
    "CK4": "Values",
    "CK5": "Sharing",
    "CK6": "Shards",
    "CK7": "Ways of loading",
    "CK8": "Two releases, and what a policy asks for",
    "CK9": "Optimizer state",
}
MADE = "Made from the code by `docs/generate.py`. `ckptool rule CODE` says the same."


def page() -> str:
    lines = ["# Rules", "", MADE, ""]
    family = ""
    for code, rule in sorted(RULES.items()):
        if code[:3] != family:
            family = code[:3]
            lines += [f"## {family}xx: {FAMILIES[family]}", ""]
        gate = f"; {rule.gate.word} in `ckptool gate`" if rule.gate is not None else ""
        lines += [f"### {code} {rule.name}", "", f"Level: {rule.level.word}{gate}", ""]
        lines += [f"Says: {_braces(rule.message)}", "", f"Why it matters: {rule.why}", ""]
        if rule.example:
            lines += ["Fires for:", "", "```python", rule.example, "```", ""]
        lines += [f"Fix: {_braces(rule.fix)}", ""]
    return "\n".join(lines)


def _braces(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}").replace("<", "&lt;")
