"""The training process: `python -P -m srt_assets.core.training.main JOB.json`, or `--student SLUG` with your settings.

With a job file it trains, and reports to Dagster if Dagster Pipes started it. With `--student` it runs the whole stage
without Dagster: it makes the job, starts the training process and commits the result.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from srt_assets.core import reserve, rights
from srt_assets.core.children import protect
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.locks import file_lock, replace_text
from srt_assets.core.masking import mask_uncaught
from srt_assets.core.progress import throttled
from srt_assets.core.signals import listen
from srt_assets.core.training.job import Job
from srt_assets.core.training.states import make_room
from srt_assets.text import printable

LOG_EVERY_S = 5.0
PATIENCE_S = 5.0
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    listen()
    protect()
    mask_uncaught()
    parser = argparse.ArgumentParser(prog="python -P -m srt_assets.core.training.main", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("job", nargs="?", type=Path, help="job file")
    what.add_argument("--student", help="registered student: run its whole stage")
    parser.add_argument("--settings", type=Path, help="settings file (default: the srt.toml found upwards)")
    parser.add_argument("--quiet", action="store_true", help="no line per step: the parent process reads live.json")
    asked = parser.parse_args(argv)
    if asked.student:
        return run_stage(asked.student, asked.settings)
    if not asked.job.is_file():
        print(printable(f"there is no job file {asked.job}; --student SLUG makes one"), file=sys.stderr)
        return UserError.exit_code
    return run_job(Job.read(asked.job), asked.quiet)


def run_stage(student: str, settings_file: Path | None) -> int:
    """Run the stage without Dagster. Exit code 0: done, 1: failed, 2: the user must change something."""
    from srt_assets.core.lake import Lake
    from srt_assets.core.sql.catalog import Publisher
    from srt_assets.core.training.stage import STAGE
    from srt_assets.settings import load_settings

    def show(done: int, total: int, unit: str = "rows", **facts: float | int | str) -> None:
        print(f"{done}/{total} {unit} " + " ".join(f"{k}={v}" for k, v in facts.items()), flush=True)

    try:
        settings = load_settings(settings_file)
        rights.keep(settings.home)
        lake = Lake(settings.home)
        outcome = STAGE.run(settings, lake, student, progress=show)
        Publisher().ended(lake)
    except (UserError, StageError) as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the next run continues from the last saved step", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps({"cached": outcome.cached, **outcome.stats}, indent=1))
    return 0


def run_job(job: Job, quiet: bool = False) -> int:
    """Train. A failure is written to `job.failure` for the parent process. Returns the exit code."""
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
    rank = int(os.environ.get("RANK", "0"))
    # A training process of a killed run may still be working on this job: wait for it instead of overwriting its files.
    alone = file_lock(job.directory / "process.lock") if rank == 0 else nullcontext()
    with _Stop() as stop, dagster_pipes(rank) as say, alone:
        if job.final.exists():
            return 0
        try:
            from srt_assets.core.training import train
        except ImportError as error:
            missing = StageError(f"cannot import the training libraries: {error}", "install the package again")
            return _fail(job, missing, quiet)
        listener = _listener(job, (lambda text: None) if quiet else say, rank)
        try:
            train.train(job, listener, say, stop.asked)
        except train.Stopped:
            say("stopped on request; the next run continues from here")
            return INTERRUPTED
        except (UserError, StageError) as error:
            return _fail(job, error, quiet)
        except Exception as error:
            if (explained := train.exhausted(error, job.directory)) is None:
                raise
            make_room(job.directory)
            return _fail(job, explained, quiet)
    return 0


class _Stop:
    """SIGINT and SIGTERM ask for a stop after the step; a second signal after `PATIENCE_S` ends the process at once.

    Ctrl-C on a terminal reaches every process of the group, and the parent passes it on too. Signals within
    `PATIENCE_S` therefore count as one request.
    """

    def __init__(self) -> None:
        self._asked_at = 0.0

    def __enter__(self) -> "_Stop":
        self._before = {n: signal.signal(n, self._hear) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        now = time.monotonic()
        self._asked_at = self._asked_at or now
        if now - self._asked_at > PATIENCE_S:
            raise SystemExit(INTERRUPTED)

    def asked(self) -> bool:
        return self._asked_at > 0


@contextmanager
def dagster_pipes(rank: int) -> Iterator[Callable[[str], None]]:
    """Yields a function that logs a sentence: to Dagster if Pipes started this process, else to stderr."""
    from dagster_pipes import PipesEnvVarParamsLoader, open_dagster_pipes

    if rank != 0:
        yield lambda text: None
    elif PipesEnvVarParamsLoader().is_dagster_pipes_process():
        with open_dagster_pipes() as pipes:
            yield pipes.log.info
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        yield logging.getLogger(__name__).info


def _listener(job: Job, say: Callable[[str], None], rank: int):
    def tell(done: int, total: int, unit: str = "rows", **facts: float | int | str) -> None:
        say(
            f"step {done} of {total}: loss {facts['loss']:.4f}, {facts['tokens_per_s']:.0f} tokens/s, "
            f"{facts['eta_s']:.0f} s left"
        )

    told = throttled(tell, LOG_EVERY_S)
    live = job.directory / "live.json"

    def hear(step: int, steps: int, facts: dict[str, float]) -> None:
        # Replaced atomically, because the parent process reads it at the same time.
        aside = live.with_suffix(".writing")
        aside.write_text(json.dumps({"done": step, "total": steps, **facts}))
        aside.replace(live)
        told(step, steps, "steps", **facts)

    return hear if rank == 0 else lambda *_: None


def _fail(job: Job, error: UserError | StageError, quiet: bool) -> int:
    if not quiet:
        print(printable(str(error)), file=sys.stderr)
    kind = "UserError" if isinstance(error, UserError) else "StageError"
    note = json.dumps({"kind": kind, "message": error.message, "remedy": error.remedy})
    try:
        replace_text(job.failure, note)
    except OSError:  # a full disk: free the home's reserve (the job's folder is home/training/<student>/<training>)
        reserve.give_back(job.directory.parents[2])
        replace_text(job.failure, note)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
