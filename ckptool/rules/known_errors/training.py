"""Known errors of training state: optimizers, DDP, FSDP, DTensor, DCP, DeepSpeed."""

from typing import Final

from ckptool.rules.known_errors.known_error import Advice, Certainty, KnownError

_INSPECT: Final = Advice("to see its optimizer state", command="ckptool inspect {file:path}")
_INSPECT_FOLDER: Final = Advice(
    "to see which keys and chunks it has", command="ckptool inspect CHECKPOINT_FOLDER"
)

TRAINING_ERRORS: Final = (
    KnownError(
        name="optimizer-group-size",
        marker="loaded state dict contains a parameter group that doesn't match the size of",
        cause=(
            "the optimizer was built over another number of parameters than the one that was "
            "saved: "
            "layers were added, removed or frozen, or passed in other groups"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            _INSPECT,
            Advice("build the optimizer over the same parameters, in the same order"),
            Advice("to see what changed", command="ckptool diff {file:path} {module_options}"),
        ),
    ),
    KnownError(
        name="optimizer-group-count",
        marker="loaded state dict has a different number of parameter groups",
        cause="the optimizer was built with another number of parameter groups than the saved one",
        certainty=Certainty.CERTAIN,
        advice=(
            _INSPECT,
            Advice("build the optimizer with the same groups (for example weight decay and none)"),
        ),
    ),
    KnownError(
        name="scaler-empty",
        marker="The source state dict is empty, possibly because it was saved from a disabled",
        cause="the GradScaler was saved while it was disabled, so that it has no state",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("skip it", code="if saved: scaler.load_state_dict(saved)"),
            Advice("to see what was saved", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="dcp-missing-key",
        marker="Missing key in checkpoint state_dict:",
        pattern=r"Missing key in checkpoint state_dict: (?P<key>[^\s{}]{1,400}?)\.?(?:\s|$)",
        cause=(
            "the distributed checkpoint has no `{key}`: the state_dict that was passed to "
            "dcp.load() "
            "has other keys than the saved one (often a wrapper's prefix, or `model.` around it)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            _INSPECT_FOLDER,
            Advice(
                "to compare it with the module",
                command="ckptool diff CHECKPOINT_FOLDER {module_options}",
            ),
        ),
    ),
    KnownError(
        name="dcp-size",
        marker="Size mismatch between saved",
        pattern=(
            r"Size mismatch between saved torch\.Size\((?P<old>\[[\d, ]{0,80}\])\) and current:"
            r" torch\.Size\((?P<new>\[[\d, ]{0,80}\])\) for (?P<key>\S{1,400})"
        ),
        cause=(
            "`{key}` is {old} in the distributed checkpoint and {new} in the model: other sizes or "
            "another vocabulary"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "to compare it with the module",
                command="ckptool diff CHECKPOINT_FOLDER {module_options}",
            ),
        ),
    ),
    KnownError(
        name="dcp-metadata",
        marker="No such file or directory:",
        pattern=r"No such file or directory: '(?P<path>[^'\n]{0,400}/?\.metadata)'",
        cause=(
            "there is no .metadata in the folder: it is not a distributed checkpoint, or saving it "
            "did not finish"
        ),
        certainty=Certainty.PROBABLE,
        advice=(_INSPECT_FOLDER,),
    ),
    KnownError(
        name="mixed-dtensor",
        marker="got mixed torch.Tensor and DTensor",
        cause=(
            "plain tensors and DTensors meet in one operation: the model is sharded (FSDP2, tensor "
            "parallel), and the checkpoint or an attribute is not"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "load a full state_dict into a sharded model with",
                code=(
                    "torch.distributed.checkpoint.state_dict.set_model_state_dict(model, "
                    "state_dict, "
                    "options=torch.distributed.checkpoint.state_dict.StateDictOptions("
                    "full_state_dict=True))"
                ),
            ),
            Advice(
                "to see attributes that are not sharded", command="ckptool audit {module_options}"
            ),
        ),
    ),
    KnownError(
        name="deepspeed-world-size",
        marker="The checkpoint being loaded used a DP world size of",
        pattern=r"DP world size of (?P<old>\d{1,6}) but the current world size is (?P<new>\d{1,6})",
        cause="the DeepSpeed checkpoint was saved by {old} processes, and {new} load it now",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "collect the weights of all ranks",
                command="python zero_to_fp32.py CHECKPOINT_FOLDER OUTPUT_FOLDER",
            ),
            Advice("to see what a rank's file contains", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="deepspeed-no-checkpoint",
        marker="Unable to find latest file at",
        pattern=r"Unable to find latest file at (?P<path>[^,\s]{1,300})",
        cause="the folder has no file `latest`: it is not the folder that DeepSpeed saved to",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "give the folder that contains `latest`, or tag=",
                code='engine.load_checkpoint("CHECKPOINT_FOLDER", tag="global_step100")',
            ),
        ),
    ),
    KnownError(
        name="lightning-hyper-parameters",
        marker="required positional argument",
        pattern=(
            r"__init__\(\) missing (?P<count>\d{1,3}) required (?:positional|keyword-only)"
            r" arguments?: (?P<names>'.{1,300}?')(?: |$)"
        ),
        contexts=("load_from_checkpoint", "lightning/pytorch/core/saving.py"),
        cause=(
            "load_from_checkpoint() has no value for {names}: save_hyperparameters() was not "
            "called "
            "when the checkpoint was saved"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "pass the arguments",
                code="Model.load_from_checkpoint({file:py}, argument=value)",
            ),
            Advice("to see what was saved", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="lightning-optimizer-count",
        marker="state but checkpoint contains only the model",
        cause="the checkpoint was saved with save_weights_only=True: there is no optimizer state",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "load the weights, and begin training again without ckpt_path",
                code="model = Model.load_from_checkpoint({file:py})",
            ),
            Advice("to see what was saved", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="lightning-old-version",
        marker="Lightning automatically upgraded your loaded checkpoint from",
        pattern=(
            r"upgraded your loaded checkpoint from (?P<old>v[\w.]{1,30}) to "
            r"(?P<new>v[\w.]{1,30})"
        ),
        cause="the checkpoint is of Lightning {old}; Lightning upgraded it to {new} while loading",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "to write the upgraded file",
                command="python -m lightning.pytorch.utilities.upgrade_checkpoint {file:path}",
            ),
            Advice("to see what it contains", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="unused-parameters",
        marker="Expected to have finished reduction in the prior iteration before starting",
        cause=(
            "parameters took no part in the loss: a module that forward() does not use, or a "
            "branch "
            "that this rank did not take"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "let DDP look for them",
                code="DistributedDataParallel(model, find_unused_parameters=True)",
            ),
        ),
    ),
    KnownError(
        name="ranks-differ",
        marker="appears not to match sizes of the same param in process 0",
        cause=(
            "the ranks built different models: one of them has other arguments or another "
            "checkpoint"
        ),
        certainty=Certainty.CERTAIN,
        advice=(Advice("compare the arguments and checkpoints of the ranks"),),
    ),
)
