"""A folder of strangers: for every module that our program or its libraries look for, a file that tells if it ran."""

import importlib.metadata
import sys
from pathlib import Path

# Looked for in a run of the whole graph, and in none of the packages that are installed with us.
OPTIONAL = """
    Bio OpenSSL aim aiodns aqlm awscrt backports bcrypt better_exceptions bitsandbytes bottleneck brotli brotlicffi
    chardet clearml cloudpickle colorama comet_ml ctags cuda deepspeed dvclive eetq elasticsearch essentia evaluate
    faiss flash_attn flash_attn_interface flint fx2trt_oss g2p_en gmpy gmpy2 greenlet habana_frameworks hqq
    httpx_aiohttp isal jax kernels librosa litellm_enterprise lomo_optim lz4 lzmaffi mlflow mlx monkeytype neptune
    neural_compressor newrelic nibabel numexpr onnx onnx_tf onnxruntime opik opt_einsum org pdfplumber polars
    pretty_midi py7zr pydot pynvml pyzstd rarfile scipy simplejson sklearn snappy socks socksio soundfile soxr
    sqlglotrs substrait swanlab teich tensorboard tensorboardX tensorflow tensorrt torch2trt torch_mlu torch_musa
    torch_neuronx torch_npu torch_sdaa torch_xla torchao torchaudio torchcodec torchcomms torchdistx torchvision
    trackio transformer_engine tree trimesh trio triton tvm twisted wandb xarray zstandard
    sitecustomize usercustomize srt_assets dbt_like_sql
""".split()  # noqa: SIM905
# Runs before Python has its built-in functions too, as the file of an encoding does.
_TELLS = """\
import posix
posix.close(posix.open(__file__.rpartition("/")[0] + "/ran-" + __name__, posix.O_CREAT | posix.O_WRONLY))
"""


def make_hostile(folder: Path) -> Path:
    """Fill the folder. What runs there leaves a file `ran-NAME`."""
    names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), *OPTIONAL}
    for name in names - {*sys.builtin_module_names}:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(_TELLS)
    # Who takes variables from it looks for modules here.
    (folder / ".env").write_text(f"PYTHONPATH={folder}\n")
    # Asks for LaTeX in every picture.
    (folder / "matplotlibrc").write_text("text.usetex: True\n")
    return folder


def ran(folder: Path) -> list[str]:
    """The modules of the folder that ran."""
    return sorted(path.name.removeprefix("ran-") for path in folder.glob("ran-*"))
