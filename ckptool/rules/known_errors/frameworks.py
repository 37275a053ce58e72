"""Known errors of transformers, peft, accelerate and diffusers."""

from typing import Final

from ckptool.rules.known_errors.known_error import Advice, Certainty, KnownError

FRAMEWORK_ERRORS: Final = (
    KnownError(
        name="adapter-config-missing",
        marker="Can't find 'adapter_config.json' at",
        pattern=r"Can't find 'adapter_config\.json' at '(?P<folder>[^'\n]{1,300})'",
        cause="{folder} is not a PEFT adapter: it has no adapter_config.json",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see what it contains", command="ckptool inspect {folder:path}"),
            Advice("a whole model is loaded by transformers' from_pretrained()"),
        ),
    ),
    KnownError(
        name="adapter-missing-keys",
        marker="Found missing adapter keys while loading the checkpoint",
        pattern=r"Found missing adapter keys while loading the checkpoint: \[?(?P<keys>.{1,300})",
        cause=(
            "the adapter's file lacks keys that its configuration names ({keys}): they stay "
            "at their initial values, and the adapter does nothing there"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "to compare the adapter with its base model",
                command="ckptool diff ADAPTER_FOLDER --base BASE_FOLDER",
            ),
        ),
    ),
    KnownError(
        name="adapter-targets",
        marker="not found in the base model",
        pattern=r"Target modules (?P<names>.{1,200}?) not found in the base model",
        cause="the base model has no modules {names}: the adapter is for another architecture",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see which modules it adapts", command="ckptool inspect ADAPTER_FOLDER"),
        ),
    ),
    KnownError(
        name="model-type-missing",
        marker="Unrecognized model in",
        pattern=r"Unrecognized model in (?P<folder>\S{1,300})\. Should have a `?model_type`? key",
        cause=(
            "{folder} has no config.json with a `model_type`: it is an adapter, a training "
            "checkpoint, or the folder above or below the model"
        ),
        certainty=Certainty.PROBABLE,
        advice=(Advice("to see what is there", command="ckptool inspect {folder:path}"),),
    ),
    KnownError(
        name="weights-missing-in-folder",
        marker="Error no file named",
        pattern=(
            r"Error no file named (?P<names>.{1,300}?),? found in directory (?P<folder>\S{1,300}?)"
            r"\.?(?:\s|$)"
        ),
        cause="the folder {folder} has no weights ({names}): an adapter, or a partial download",
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see what is there", command="ckptool inspect {folder:path}"),),
    ),
    KnownError(
        name="torch-too-old-for-pickles",
        marker="we now require users to upgrade torch to at least v2.6",
        cause=(
            "transformers does not read .bin files with torch before 2.6, whose torch.load has a "
            "known vulnerability"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "write safetensors, which need no torch.load",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
            Advice("or update torch", command="pip install -U torch"),
        ),
    ),
    KnownError(
        name="accelerate-no-device-map",
        marker="doesn't have any device set.",
        pattern=r"(?:ValueError: )?(?P<key>[\w.]{1,300}) doesn't have any device set\.",
        cause="the device_map of accelerate has no entry for `{key}`: it names other modules",
        certainty=Certainty.CERTAIN,
        advice=(Advice("let accelerate choose", code='device_map="auto"'),),
    ),
    KnownError(
        name="accelerate-meta-tensor",
        marker="is on the meta device, we need a `value` to put in on",
        pattern=r"(?P<key>[\w.]{1,300}) is on the meta device, we need a `value` to put in on",
        cause=(
            "`{key}` is in no checkpoint: the model was built without memory and has no value "
            "for it"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "to see which keys the checkpoint lacks",
                command="ckptool diff MODEL_FOLDER",
            ),
        ),
    ),
    KnownError(
        name="accelerate-shape",
        marker="Trying to set a tensor of shape",
        pattern=(
            r"Trying to set a tensor of shape torch\.Size\((?P<old>\[[\d, ]{0,80}\])\) in"
            r" \"(?P<key>[^\"]{1,300})\" \(which has shape torch\.Size\((?P<new>\[[\d, "
            r"]{0,80}\])\)\)"
        ),
        cause=(
            "`{key}` is {old} in the checkpoint and {new} in the model: the configuration was "
            "changed, or tokens were added"
        ),
        certainty=Certainty.PROBABLE,
        advice=(Advice("to compare folder and model", command="ckptool diff MODEL_FOLDER"),),
    ),
    KnownError(
        name="tied-weights-saved",
        marker="The weights trying to be saved contained shared tensors",
        pattern=(
            r"contained shared tensors (?P<keys>.{1,300}?) that are mismatching the "
            r"transformers"
        ),
        cause="save_pretrained() met tied weights that the model does not declare: {keys}",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "save without safetensors",
                code="model.save_pretrained(path, safe_serialization=False)",
            ),
            Advice("to see the ties of a file", command="ckptool inspect {file:path}"),
        ),
    ),
)
