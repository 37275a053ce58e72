"""Chain x today's module -> what changed in its state since the head, without a revision."""

from ckptool.commands.revisions.project_chain import ProjectChain
from ckptool.commands.worker.migration_requests import WorkerModule
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import get_worker
from ckptool.compare.contracts.contract import build_module_contract
from ckptool.migration.plan.target_module import TargetModule
from ckptool.revisions.chain import Chain
from ckptool.revisions.recorded_state import compare_states, record_contract
from ckptool.rules.chain.arrivals import ChainChange


def describe_module(project: ProjectChain, purpose: str) -> TargetModule:
    """Return today's module; `purpose` begins the sentence that says what needs it.

    Raises:
        UsageError: there is none.
        ModuleError: it cannot be built.
    """
    worker, target = get_worker(), project.require_target(purpose)
    module_info = worker.ask(DescribeModule(target)).module_info
    return TargetModule(module_info, WorkerModule(worker, target, target.file_arguments))


def find_unrecorded_change(chain: Chain, target_module: TargetModule) -> ChainChange:
    """Return the difference between the state of the head and that of the module, "" for none."""
    state = record_contract(build_module_contract(target_module.module_info))
    return ChainChange(chain.head.name, compare_states(chain.head.state, state).text)
