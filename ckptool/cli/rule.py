"""`ckptool rule`."""

from textwrap import indent

import click

from ckptool import api


def _codes(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:  # noqa: ARG001
    return [rule.code for rule in api.rule() if rule.code.startswith(typed.upper())]


@click.command("rule")
@click.argument("code", required=False, shell_complete=_codes)
def command(code: str | None) -> None:
    """Say what a rule means and how to fix what it finds; without CODE, list them all.

    CODE is a rule (CK101 or its name) or a family (CK1).
    """
    rules = api.rule(code)
    if len(rules) == 1:
        one = rules[0]
        gate = f"; {one.gate} in `ckptool gate`" if one.gate else ""
        click.echo(f"{one.code} {one.name} ({one.level}{gate})\n\n{one.message}\n")
        click.echo(f"Why it matters: {one.why}\n")
        if one.example:
            click.echo(f"Fires for:\n\n{indent(one.example, '    ')}\n")
        click.echo(f"Fix: {one.fix}")
        return
    for one in rules:
        click.echo(f"{one.code}  {one.level:<7}  {one.name}")
