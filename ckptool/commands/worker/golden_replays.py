"""ReplayGolden -> GoldenReplays: run a module with a checkpoint's weights on recorded inputs."""

from pathlib import Path, PurePath

from ckptool.commands.worker.requests import GoldenReplays, ReplayGolden
from ckptool.model import Skipped
from ckptool.verification.golden import read_golden, replay_golden


def replay_golden_files(request: ReplayGolden) -> GoldenReplays:
    """Replay the golden files that belong to the checkpoint.

    Raises:
        ReadError: a golden file, or a tensor of the checkpoint, cannot be read.
        ModuleError: the module cannot be built.
        UsageError: the device does not exist.
    """
    checkpoint = request.checkpoint
    golden_files = [read_golden(path) for path in request.paths]
    stem = PurePath(checkpoint.path.name).stem
    mismatched_files = [
        golden_file
        for golden_file in golden_files
        if request.has_many_checkpoints and Path(golden_file.record.checkpoint).stem != stem
    ]
    skipped_files = tuple(
        Skipped(
            f"{golden_file.path} with {checkpoint.path}",
            f"it is of {golden_file.record.checkpoint}",
        )
        for golden_file in mismatched_files
    )
    if len(mismatched_files) == len(golden_files):
        return GoldenReplays((), skipped_files)
    with request.target.open_verification_target(checkpoint) as verification_target:
        replays = tuple(
            replay_golden(verification_target, golden_file, request.device)
            for golden_file in golden_files
            if golden_file not in mismatched_files
        )
    skipped = (skipped for golden_replay in replays for skipped in golden_replay.skipped)
    return GoldenReplays(replays, (*skipped_files, *skipped))
