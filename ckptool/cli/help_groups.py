"""GroupedCommand: the options of a command's help, in groups."""

from typing import Final

import click

_GROUPS: Final = {
    "Input": (
        "checkpoint module kwargs_pairs kwargs_file no_file_kwargs loader base at into takes_all"
        " modules_only"
        " input_words inputs_from golden fixtures plans against old old_module explain textconv"
        " key_filter depth sort key from_revision chain message fixture"
    ),
    "What is changed": (
        "injected drop renamed merge python accept_renames from_ merge_adapter drop_extra plan"
        " reverse to dtype weights_only strip merge_shards max_shard_size style parameters"
        " keep_old_files update no_links no_provenance"
    ),
    "Where it runs": (
        "resume_check resume_args device import_paths in_process"
        " timeout jobs dask shard deep limit_pairs no_config"
    ),
    "How it is judged": (
        "check values rtol atol tolerance tolerance_texts device_tolerances policy_file baseline"
        " update_baseline fail_on select ignore exit_zero show_policy"
    ),
    "Output": (
        "formats outputs target force replace_foreign dry_run write allow_unproved save_plan"
        " emit_hook color quiet verbose no_progress help show_help _click_default_help"
    ),
}
"""Group -> names of the parameters in it, of all commands."""
GROUP_BY_PARAMETER: Final = {
    name: group for group, names in _GROUPS.items() for name in names.split()
}
_OTHERS: Final = "Other options"


class GroupedCommand(click.Command):
    """Click command whose help lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            # An argument is in the usage line, which says all that is known of it.
            is_option = isinstance(parameter, click.Option)
            record = parameter.get_help_record(ctx) if is_option else None
            if record is not None:
                group = GROUP_BY_PARAMETER.get(parameter.name or "", _OTHERS)
                records.setdefault(group, []).append(record)
        for group in (*_GROUPS, _OTHERS):
            if group in records:
                with formatter.section(group):
                    formatter.write_dl(records[group])
