"""Dagster's web server on loopback, behind the guard: `python -m srt_assets.defs.webserver -w workspace.yaml -p 3000`.

`srt ui` and a team's service (docs/operations.md) start it. Dagster's own command has no guard.
"""

import argparse
import signal
from pathlib import Path

import dagster as dg
import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext  # exported nowhere
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._utils.log import configure_loggers
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__

from srt_assets.core.children import protect
from srt_assets.core.masking import mask_uncaught
from srt_assets.core.signals import listen
from srt_assets.defs.guard import Guard

# The defaults of Dagster's own command: milliseconds, seconds, connections.
STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, POOL_OVERFLOW = 15_000, 3_600, 20
POLL_MS = 2_000
# Seconds. An open page must not keep the server from ending.
GRACE_S = 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m srt_assets.defs.webserver", description=__doc__)
    parser.add_argument("-w", "--workspace", type=Path, required=True, help="workspace file of Dagster")
    parser.add_argument("-p", "--port", type=int, default=3000, help="port on 127.0.0.1")
    asked = parser.parse_args(argv)
    listen()
    protect()
    mask_uncaught()
    # uvicorn stops on either signal and then raises it again; as a KeyboardInterrupt it ends this function.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_loggers()
    try:
        serve(asked.workspace, asked.port)
    except KeyboardInterrupt:
        return 0
    return 0


def serve(workspace: Path, port: int) -> None:
    """Serve the instance of DAGSTER_HOME until a signal arrives."""
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, POOL_OVERFLOW)
        target = WorkspaceFileTarget([str(workspace)])
        with WorkspaceProcessContext(instance, target, version=__version__, code_server_log_level="WARNING") as context:
            app = create_app_from_workspace_process_context(context, "", POLL_MS)
            uvicorn.run(
                Guard(app, port),
                host="127.0.0.1",
                port=port,
                log_level="warning",
                # Proxy headers are ignored, because any client can send them.
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_S,
            )


if __name__ == "__main__":
    raise SystemExit(main())
