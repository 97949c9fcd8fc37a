"""The teacher `local`: llama.cpp's server inside this process, serving the packaged SmolLM2-135M on a loopback port."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from srt_assets.core import packaged
from srt_assets.core.errors import StageError, UserError

SLOTS = 4
CONTEXT_TOKENS = 4096  # of each slot; the model's window is 8192


def _free_cores() -> int:
    # llama.cpp's threads wait for each other after every layer, so one thread on a busy core slows all of them
    # (measured on two cores, one of them busy: two threads 38 tokens/s, one thread 72 tokens/s).
    cores = psutil.cpu_count() or 1
    return max(1, cores - round(cores * psutil.cpu_percent(interval=0.3) / 100))


@contextmanager
def serve() -> Iterator[str]:
    """Run the server within the block; yields its base URL (`…/v1`). UserError if llama.cpp is not installed."""
    path = packaged.gguf()
    try:
        import xllamacpp
    except ImportError:
        raise UserError(
            "the llama.cpp server of teacher.model = 'local' is not installed",
            "pip install 'srt-assets[local]', or choose another teacher.model",
        ) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    params.kv_unified = False
    params.n_gpu_layers = 0
    threads = _free_cores()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = False
    params.endpoint_metrics = False
    params.verbosity = -1
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise StageError(f"the local teacher did not start: {error}", "see if memory and ports are free") from error
    try:
        yield f"{server.listening_address}/v1"
    finally:
        # The server stops when its last reference is collected.
        del server
        gc.collect()
