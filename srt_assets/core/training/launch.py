"""Starts the training process: its command line, its environment, and a launcher that does not need Dagster."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from srt_assets.core import children
from srt_assets.core.errors import UserError

MODULE = "srt_assets.core.training.main"
GRACE_S = 60.0


def command(job_file: Path, processes: int) -> list[str]:
    """The command line of a job's training process; `accelerate launch` starts several processes."""
    tail = ["-m", MODULE, str(job_file), "--quiet"]
    if processes == 1:
        return [sys.executable, "-P", *tail]
    threads = max(1, (os.cpu_count() or 1) // processes)
    # --multi_gpu chooses the launcher (torch.distributed.run), not the device: without a GPU the workers use gloo.
    # The workers know the model's size and the device; they decide whether it is replicated (DDP) or sharded (FSDP).
    return [
        *(sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"),
        # Port 0: torch picks a free port, so that two trainings on one machine do not collide.
        *("--dynamo_backend", "no", "--main_process_port", "0", "--num_cpu_threads_per_process", str(threads)),
        *tail,
    ]


def visible(devices: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable that limits the training process to the GPUs in `student.devices`; {} if it names none."""
    wanted = [int(d.rpartition(":")[2]) for d in devices.split(",") if d.startswith("cuda:")]
    if not wanted:
        return {}
    outer = [g for g in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    if outer and max(wanted) >= len(outer):
        raise UserError(
            f"student.devices is {devices}, but CUDA_VISIBLE_DEVICES shows {len(outer)} GPU(s)",
            "correct one of them",
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(outer[i] if outer else str(i) for i in wanted)}


def tokenizing(processes: int) -> dict[str, str]:
    """The variables that limit every process to its share of the cores for tokenizing."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}


def hang_up() -> dict[str, str]:
    """The variable that keeps torch's launcher from stopping on SIGHUP if `nohup` made this process ignore it."""
    return {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT"} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else {}


def plain(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the command as a child. When this process is interrupted, the child is asked to save its state and stop."""
    whole = {**os.environ, **env}
    process = subprocess.Popen(command, env=whole | children.safe(whole), start_new_session=True)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
