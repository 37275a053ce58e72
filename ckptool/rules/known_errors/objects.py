"""Known errors of code that takes a file for what it is not: its place, its kind, its writer."""

from typing import Final

from ckptool.rules.known_errors.known_error import Advice, Certainty, KnownError

_INSPECT: Final = Advice(
    "to see what the file has, and where", command="ckptool inspect {file:path}"
)
_CPU: Final = Advice(
    "load it on the CPU", code='checkpoint = torch.load({file:py}, map_location="cpu")'
)
_READING: Final = ("torch.load(", "load_state_dict(", "pickle", "serialization.py", "checkpoint")

OBJECT_ERRORS: Final = (
    KnownError(
        name="state-at-another-place",
        marker="KeyError: ",
        pattern=(
            r"KeyError: '(?P<name>(?:model|optimizer|ema)?_?state(?:_dict)?|model|module|net|params"
            r"|weights|epoch|optimizer|scheduler|hyper_parameters)'(?: |$)"
        ),
        contexts=("load_state_dict(", "torch.load(", "load_from_checkpoint("),
        cause="the file has nothing at `{name}`: its state is at another key path, or is its root",
        certainty=Certainty.PROBABLE,
        advice=(_INSPECT,),
    ),
    KnownError(
        name="state-dict-for-module",
        marker="OrderedDict' object",
        pattern=(
            r"'(?:collections\.)?OrderedDict' object (?:is not callable|has no attribute"
            r" '(?P<name>eval|train|to|cuda|cpu|half|float|parameters|named_parameters|modules"
            r"|forward|state_dict|load_state_dict|requires_grad_)')"
        ),
        cause="the file has a state_dict, and the code takes what it loads for a module",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "build the module, and load the state_dict into it",
                code="model.load_state_dict(torch.load({file:py}))",
            ),
            _INSPECT,
        ),
    ),
    KnownError(
        name="plain-pickle",
        marker="invalid magic number; corrupt file?",
        cause=(
            "the file is a pickle that torch.save did not write (pickle.dump, joblib), or a "
            "damaged one"
        ),
        certainty=Certainty.PROBABLE,
        advice=(Advice("to see what the file is", command="ckptool inspect {file:path}"),),
    ),
    KnownError(
        name="torch-file-read-by-pickle",
        marker="A load persistent id instruction was encountered",
        cause="the file was written by torch.save, and read by pickle.load or another unpickler",
        certainty=Certainty.CERTAIN,
        advice=(Advice("read it with torch", code="checkpoint = torch.load({file:py})"),),
    ),
    KnownError(
        name="mmap-of-old-format",
        marker="mmap can only be used with files saved with",
        cause="the file has the format of torch before 1.6, which cannot be mapped into memory",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("load it without mmap=True", code="checkpoint = torch.load({file:py})"),
            Advice(
                "or write it in a format that can be mapped",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="unknown-device-tag",
        marker="don't know how to restore data location of",
        pattern=r"restore data location of .{1,120}? \(tagged with (?P<device>[\w:]{1,40})\)",
        cause="the tensors were saved on the device {device}, which this torch does not have",
        certainty=Certainty.CERTAIN,
        advice=(_CPU,),
    ),
    KnownError(
        name="path-of-another-system",
        marker="on your system",
        pattern=r"cannot instantiate '?(?P<name>PosixPath|WindowsPath)'? on your system",
        contexts=_READING,
        cause="the file has an object of pathlib.{name}, written on another operating system",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "write a file without Python objects",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="newer-numpy",
        marker="No module named",
        pattern=r"(?:ModuleNotFoundError|ImportError): No module named '?numpy\._core",
        contexts=_READING,
        cause="the file has objects of NumPy 2, and an older NumPy is installed here",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("install NumPy 2", command="python -m pip install 'numpy>=2'"),
            Advice(
                "or write a file without Python objects",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="tensors-on-meta",
        marker="While copying the parameter named",
        pattern=(
            r"While copying the parameter named \"[^\"]{1,400}\".{1,400}?an exception"
            r" occurred.{1,20}?Cannot copy out of meta tensor"
        ),
        cause=(
            "what is loaded is on the meta device and has no values: it was read with "
            'map_location="meta", or saved from a module on meta'
        ),
        certainty=Certainty.CERTAIN,
        advice=(_CPU,),
    ),
    KnownError(
        name="save-ended-early",
        marker="unexpected pos",
        pattern=r"inline_container\.cc:\d{1,6}\] ?\. unexpected pos \d{1,20} vs \d{1,20}",
        cause="the file could not be written to its end: the disk, or a quota on it, is full",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("free space, and save again; the file that is there is not whole"),
            Advice("to see what the file has", command="ckptool inspect {file:path}"),
        ),
    ),
    KnownError(
        name="trainer-no-checkpoint",
        marker="No valid checkpoint found in output directory",
        pattern=r"No valid checkpoint found in output directory \((?P<folder>[^){}]{1,300})\)",
        cause="{folder} has no folder checkpoint-STEP that the Trainer could resume from",
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see what is there", command="ls -l {folder:path}"),),
    ),
    KnownError(
        name="trainer-unfit-checkpoint",
        marker="Can't find a valid checkpoint at",
        pattern=r"Can't find a valid checkpoint at (?P<folder>[^\s{}]{1,300})",
        cause="{folder} has no file with weights of a name that the Trainer looks for",
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see what is there", command="ckptool inspect {folder:path}"),),
    ),
)
