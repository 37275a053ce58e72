"""Known errors of files that are damaged, or of another format than expected."""

from typing import Final

from ckptool.rules.known_errors.known_error import Advice, Certainty, KnownError

_INSPECT: Final = Advice("to see what the file is", command="ckptool inspect {file:path}")
_FETCH_SECOND: Final = Advice(
    "write or download it again, and compare its size with that of the source"
)
_CUT_ZIP: Final = (
    "the file is cut off or damaged: a checkpoint of torch.save without its end (a job stopped"
    " while saving, a full disk, an interrupted download)"
)

CONTAINER_ERRORS: Final = (
    KnownError(
        name="zip-truncated",
        marker="PytorchStreamReader failed reading zip archive: failed finding central directory",
        cause=_CUT_ZIP,
        certainty=Certainty.PROBABLE,
        advice=(_INSPECT, _FETCH_SECOND),
    ),
    KnownError(
        name="zip-cut",
        marker="OSError: [Errno 22] Invalid argument",
        contexts=("PyTorchFileReader",),
        cause=_CUT_ZIP,
        certainty=Certainty.PROBABLE,
        advice=(_INSPECT, _FETCH_SECOND),
    ),
    KnownError(
        name="folder-for-file",
        marker="IsADirectoryError: [Errno 21] Is a directory: '",
        pattern=r"Is a directory: '(?P<folder>[^'\n]{1,400})'",
        contexts=("torch.load(", "torch/serialization.py"),
        cause=(
            "`{folder}` is a folder, and torch.load() reads one file: the checkpoint is sharded, or"
            " distributed (DCP)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to see what it contains", command="ckptool inspect {folder:path}"),
            Advice("load all of it", code="ckptool.load(model, {folder:py})"),
            Advice(
                "or write it as one file",
                command="ckptool convert {folder:path} -o {result:sh}",
            ),
        ),
    ),
    KnownError(
        name="zip-record-missing",
        marker="PytorchStreamReader failed locating file",
        pattern=(
            r"PytorchStreamReader failed locating file (?P<record>[^\s:]{1,200}): file not "
            r"found"
        ),
        cause=(
            "the archive has no record `{record}`: it is another kind of zip, or was packed again "
            "(torch.save, torch.jit.save and torch.export.save write different ones)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            _INSPECT,
            Advice("or pack it again", command="ckptool convert {file:path} -o {result:sh}"),
        ),
    ),
    KnownError(
        name="zip-damaged",
        marker="PytorchStreamReader failed reading",
        pattern=(
            r"PytorchStreamReader failed reading (?!zip archive: failed "
            r"finding)(?P<what>.{1,120})"
        ),
        cause="the archive is damaged: reading {what}",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to see what is damaged", command="ckptool inspect {file:path} --deep"),
            _FETCH_SECOND,
        ),
    ),
    KnownError(
        name="save-failed",
        marker="PytorchStreamWriter failed writing file",
        cause="torch.save could not write all of the file: the disk is full, or a quota is reached",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("free space on the disk, and save again"),
            Advice("to see what was written", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="safetensors-not-one",
        marker="Error while deserializing header:",
        pattern=(
            r"Error while deserializing header: (?:header ?too ?large|HeaderTooLarge"
            r"|invalid ?header ?length|InvalidHeaderLength|invalid ?header ?deserialization"
            r"|InvalidHeaderDeserialization|invalid ?UTF-8 in header|InvalidHeader(?!Start)\b"
            r"|invalid JSON in header|header ?too ?small|HeaderTooSmall|InvalidHeaderStart"
            r"|invalid ?header ?start)"
        ),
        cause=(
            "the file is not a safetensors file, even if its name ends in .safetensors: often a "
            "Git LFS pointer, an HTML page, an empty file, or a pickle of torch.save"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            _INSPECT,
            Advice("if it is a Git LFS pointer", command="git lfs pull"),
            _FETCH_SECOND,
        ),
    ),
    KnownError(
        name="safetensors-incomplete",
        marker="Error while deserializing header:",
        pattern=(
            r"Error while deserializing header: (?:incomplete metadata|MetadataIncompleteBuffer)"
        ),
        cause=(
            "the safetensors file has another size than its header says: it was cut off or damaged"
        ),
        certainty=Certainty.CERTAIN,
        advice=(_INSPECT, _FETCH_SECOND),
    ),
    KnownError(
        name="safetensors-offsets",
        marker="Error while deserializing header:",
        pattern=(
            r"Error while deserializing header: (?:invalid offset|InvalidOffset"
            r"|TensorInvalidInfo|invalid shape|ValidationOverflow|tensor invalid)"
        ),
        cause="the header of the safetensors file is inconsistent: it is damaged",
        certainty=Certainty.CERTAIN,
        advice=(_INSPECT, _FETCH_SECOND),
    ),
    KnownError(
        name="safetensors-shared",
        marker="Some tensors share memory, this will lead to duplicate memory on disk",
        pattern=(
            r"Some tensors share memory, this will lead to duplicate memory on disk.{0,100}"
            r"loading them again: (?P<keys>.{1,300}?\])"
        ),
        cause="tied weights or views cannot be saved as they are in safetensors: {keys}",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "save the module, which keeps its ties",
                code='safetensors.torch.save_model(model, "model.safetensors")',
            ),
            Advice(
                "or convert a file of torch.save",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="safetensors-not-contiguous",
        marker="You are trying to save a non contiguous tensor:",
        pattern=r"non contiguous tensor: `(?P<key>[^`]{1,400})` which is not allowed",
        cause="`{key}` is a view (transposed or sliced), which safetensors does not store",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "copy it before saving",
                code="tensors = {{key: value.contiguous() for key, value in tensors.items()}}",
            ),
        ),
    ),
    KnownError(
        name="safetensors-key",
        marker="File does not contain tensor",
        pattern=r"SafetensorError: File does not contain tensor (?P<key>\S{1,400})",
        cause="the safetensors file has no tensor `{key}`",
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see its keys", command="ckptool inspect {file:path} -v"),),
    ),
    KnownError(
        name="gone-file",
        marker="No such file or directory:",
        pattern=(
            r"No such file or directory: '(?P<path>[^'\n]{1,400}\.(?:pth|pt|ckpt|bin|safetensors"
            r"|index\.json))'"
        ),
        cause="there is no file {path}: relative paths begin at the directory the command runs in",
        certainty=Certainty.CERTAIN,
        advice=(Advice("check the path and the current directory", command="ls -l {path:path}"),),
    ),
    KnownError(
        name="missing-shard",
        marker="does not appear to have a file named",
        pattern=(
            r"(?P<folder>\S{1,300}) does not appear to have (?:a file named|files named)"
            r" \(?'?(?P<name>[\w.\-]{1,200})"
        ),
        cause="the folder {folder} lacks {name}: a shard or the weights were not downloaded",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see which shards the index names", command="ckptool inspect {folder:path}"),
        ),
    ),
    KnownError(
        name="torchscript-as-checkpoint",
        marker="Cannot use ``weights_only=True`` with TorchScript archives",
        cause=(
            "the file is a TorchScript archive, which torch.load(weights_only=True) does not read"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("read it", code="model = torch.jit.load({file:py})"),
            Advice(
                "or take its tensors",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
)
