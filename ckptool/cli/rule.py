"""`ckptool rule`."""

import click

from ckptool import api


@click.command("rule")
@click.argument("code", required=False)
def command(code: str | None) -> None:
    """Say what a rule means and how to fix what it finds; without CODE, list them all.

    CODE is a rule (CK101) or a family (CK1).
    """
    rules = api.rule(code)
    if len(rules) == 1:
        one = rules[0]
        click.echo(f"{one.code} {one.name} ({one.level})\n\n{one.message}\n")
        click.echo(f"Why it matters: {one.why}\n\nFix: {one.fix}")
        return
    for one in rules:
        click.echo(f"{one.code}  {one.level:<7}  {one.name}")
