"""Rules and the checks that find their violations; importing the package registers all of them.

| family | file | subject |
|---|---|---|
| CK101-CK106, CK108, CK112, CK114 | module_state.py | state of a module that its state_dict lacks |
| CK109-CK111 | module_moves.py | tensors that do not follow the module to a device or dtype |
| CK201-CK203, CK605 | load/missing_keys.py | keys of the module that the file lacks |
| CK204-CK206, CK214, CK220 | load/unexpected_keys.py | keys of the file that the module lacks |
| CK209, CK211 | load/renames.py | keys with other names on the two sides |
| CK207, CK208, CK215, CK316 | load/shapes.py | shapes and dtypes of keys on both sides |
| CK210, CK212, CK222, CK223, CK226, CK304 | load/summary.py | the load as a whole |
| CK216 | load/versions.py | versions of classes that the file lacks |
| CK224, CK225 | parts.py | one side that is a part of the other |
| CK227-CK229 | framework_loading.py | what a framework's loader does |
| CK230-CK234, CK238 | runs/loads.py | loads seen in a run |
| CK330-CK333 | runs/saves.py | saves seen in a run |
| CK334, CK335 | runs/resume.py | a resumed run against an uninterrupted one |
| CK217, CK218 | reparametrization.py | the same tensor in another form |
| CK219, CK235-CK237 | quantization.py | quantised weights |
| CK221, CK311 | plan_errors.py | errors of a migration plan |
| CK301-CK303, CK326 | pickled_code.py | what pickles import |
| CK306-CK308, CK310, CK312-CK315, CK317, CK322, CK601-CK603 | container.py | content of files |
| CK305, CK309 | training_state.py | files of a training run |
| CK320-CK321, CK327, CK604 | partial_weights.py | weights of one rank, or without values |
| CK336-CK337 | object_state.py | what the state_dict of an optimizer or sampler lacks |
| CK213, CK401, CK404-CK405 | values.py | values of tensors |
| CK402-CK403 | running_statistics.py | running statistics that nothing trained |
| CK501-CK503 | ties.py | tied tensors and shared storages |
| CK107, CK113, CK701, CK702 | runtime.py | results of running a module |
| CK801-CK806 | release/contract.py | backward compatibility with an older release |
| CK329, CK851-CK856, CK860 | release/requirements.py | what a policy requires |
| CK328, CK857-CK859 | release/policy_issues.py | entries of a policy that are out of date |
| CK870-CK875 | chain/file_revisions.py | a checkpoint's place in the chain of migrations |
| CK876-CK879 | chain/arrivals.py | the chain, its module and its old files |
| CK901, CK902 | optimizer.py | optimizer state against parameters |

registry.py holds `Rule`, `Finding` and the decorators `check` and `check_other_subject`.
A code may have further checks in other files: CK110 also in runtime.py, CK210 also in
release/requirements.py.
"""

from ckptool.rules import (  # noqa: F401 (each registers its rules)
    container,
    framework_loading,
    module_moves,
    module_state,
    object_state,
    optimizer,
    partial_weights,
    parts,
    pickled_code,
    plan_errors,
    quantization,
    reparametrization,
    running_statistics,
    runtime,
    ties,
    training_state,
    values,
)
from ckptool.rules.chain import arrivals, file_revisions  # noqa: F401
from ckptool.rules.load import (  # noqa: F401
    missing_keys,
    renames,
    shapes,
    summary,
    unexpected_keys,
    versions,
)
from ckptool.rules.registry import RULES, Finding, Level, Rule, run_rules
from ckptool.rules.release import contract, policy_issues, requirements  # noqa: F401
from ckptool.rules.runs import loads, resume, saves  # noqa: F401

__all__ = ["RULES", "Finding", "Level", "Rule", "run_rules"]
