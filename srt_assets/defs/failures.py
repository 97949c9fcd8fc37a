"""Step failures in Dagster: cause and remedy for the user; the stack trace goes only to the log."""

import traceback
from collections.abc import Iterable
from multiprocessing import parent_process

import dagster as dg

# Dagster has no public error class that it shows without a stack trace.
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.errors import explained as explanation
from srt_assets.core.masking import redact

EXIT_CODE = "srt/exit_code"
LONGEST_MESSAGE = 500


class _Shown(DagsterUserCodeProcessError):
    """An error that Dagster shows without a stack trace of its own, because it carries one (empty) already."""

    def __init__(self, text: str) -> None:
        shown = SerializableErrorInfo(message=f"Failed: {text}\n", stack=[], cls_name="Failed")
        super().__init__(text, user_code_process_error_infos=[shown])


class Failed(dg.Failure, _Shown):
    """A failure whose text has cause and remedy. Dagster does not retry it."""

    def __init__(self, text: str, exit_code: int = StageError.exit_code) -> None:
        super().__init__(text, metadata={EXIT_CODE: exit_code}, allow_retries=False)


class explained:
    """Turns any error that ends a step into a `Failed` with cause and remedy. The trace is logged at level debug.

    An interrupt is no failure. In `srt run` the step runs in the command's own process: the interrupt is passed on and
    the command ends. If Dagster runs the step in a child process, the step fails with one sentence instead of a trace,
    and Dagster's parent process, which sent the signal, marks the run as canceled.
    """

    def __init__(self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> None:
        self._context = context

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError) and parent_process() is not None:
            raise Failed("stopped on request; what was done is kept, and the next run goes on from there") from None
        if not isinstance(error, Exception) or isinstance(error, dg.Failure | dg.DagsterError):
            return
        known = error if isinstance(error, UserError | StageError) else explanation(error)
        known = known or fault_of_ours(error, self._context.run.run_id)
        # A trace may contain secrets: an address with its password, the headers of a request.
        self._context.log.debug("where it failed:\n" + redact("".join(traceback.format_exception(error))))
        raise Failed(str(known), known.exit_code) from None


def fault_of_ours(error: Exception, run_id: str) -> StageError:
    """An unexpected error in one sentence, and how to report it."""
    said = redact(" ".join(str(error).split()))
    said = said if len(said) <= LONGEST_MESSAGE else f"{said[:LONGEST_MESSAGE]} …"
    return StageError(
        f"{type(error).__name__}: {said or 'no message'} (an unexpected error: a fault of srt-assets)",
        f"report it with the trace, which is in the log of run {run_id[:8]} at level debug (srt ui; or srt run "
        "--verbose), and with what srt doctor says",
    )


def stop_if_failed(results: Iterable[dg.AssetCheckResult]) -> None:
    """Fail the step with the findings of its failed blocking checks; Dagster's own message has only their names."""
    failed = [r for r in results if not r.passed and r.severity == dg.AssetCheckSeverity.ERROR]
    if failed:
        raise Failed("\n".join(f"check {r.check_name}: {r.description}" for r in failed))


def cause(event: dg.DagsterEvent) -> str:
    """Cause and remedy of a step's failure, without the stack trace."""
    failed = event.step_failure_data
    if failed.user_failure_data and failed.user_failure_data.description:
        return failed.user_failure_data.description
    error = failed.error
    # The outer error only says that a step failed; the innermost says why.
    while error and error.cause:
        error = error.cause
    return error.message.strip() if error else "the cause is unknown"
