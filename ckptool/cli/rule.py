"""`ckptool rule`."""

from textwrap import indent

import click

from ckptool import api


def _complete_codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    return [rule.code for rule in api.rule() if rule.code.startswith(incomplete.upper())]


@click.command("rule")
@click.argument("code", required=False, shell_complete=_complete_codes)
def command(code: str | None) -> None:
    """Explain a rule and how to fix its findings; without CODE, list all rules.

    CODE is a rule (CK101 or its name) or a family (CK1).
    """
    rules = api.rule(code)
    if len(rules) == 1:
        rule = rules[0]
        gate = f"; {rule.gate} in `ckptool gate`" if rule.gate else ""
        click.echo(f"{rule.code} {rule.name} ({rule.level}{gate})\n\n{rule.message}\n")
        click.echo(f"Why it matters: {rule.why}\n")
        if rule.example:
            click.echo(f"Fires for:\n\n{indent(rule.example, '    ')}\n")
        click.echo(f"Fix: {rule.fix}")
        return
    for rule in rules:
        click.echo(f"{rule.code}  {rule.level:<7}  {rule.name}")
