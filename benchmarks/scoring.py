"""How fast scoring is: the paper's way, plain batches, and this project's, in one run on the same passes.

    python benchmarks/scoring.py --student DIR --data alpaca.json --records 24            # CPU
    python benchmarks/scoring.py --shape 1b --device cuda:0 --dtype bfloat16 --records 512  # GPU, random weights

(a) batch of one, four passes for each of four candidates, `labels=`; (b) padded batches in file order, attention
mask, full logits; (c) the scorer behind `student_scores`. A record is four candidates. The peak is the speed of the
model's own matrix products, measured in the same run; the share counts useful operations only (no padding, nothing
computed twice). CPU seconds are of the whole process.
"""

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from srt_assets.core.student.chunks import shared_beginnings
from srt_assets.core.student.devices import default_token_budget
from srt_assets.core.student.encoding import Encoder, Pass, Texts
from srt_assets.core.student.model import Forward, load_model, load_tokenizer
from srt_assets.core.student.scorer import Scorer
from srt_assets.core.tables import PASSES

SHAPES = {
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "7b": dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ),
}  # fmt: skip


@dataclass
class Measured:
    name: str
    seconds: float
    cpu_seconds: float
    tokens: int
    flops: float
    peak_bytes: int
    losses: list[float]


def from_data(student: Path, data: Path, records: int, template: str) -> tuple[list[Pass], list[tuple[int, ...]]]:
    """Four candidates a record: its own texts, and others' texts in place of the teacher's rewrites."""
    rows = json.loads(data.read_text())
    random.Random(0).shuffle(rows)
    texts = []
    for i in range(records):
        own, q, a, qa = (rows[(i + k * records) % len(rows)] for k in range(4))
        given = own.get("input", "")
        texts += [
            Texts(own["instruction"], given, own["output"]),
            Texts(q["instruction"], "", q["output"]),
            Texts(own["instruction"], given, a["output"]),
            Texts(q["instruction"], "", qa["output"]),
        ]
    encoder = Encoder(load_tokenizer(student), template, "aligned", 2048)
    passes = [one for encoded in encoder.encode(texts) for name in PASSES if isinstance(one := encoded[name], Pass)]
    return passes, shared_beginnings(encoder)


def synthetic(records: int, vocab: int) -> tuple[list[Pass], list[tuple[int, ...]]]:
    """Random ids with the lengths of Alpaca under the Vicuna template (median response 120 tokens, BOS)."""
    rng = np.random.default_rng(0)
    system, guess, close = (rng.integers(5, vocab, n).tolist() for n in (38, 20, 12))

    def text(median: float, sigma: float) -> list[int]:
        return rng.integers(5, vocab, int(np.clip(rng.lognormal(np.log(median), sigma), 2, 900))).tolist()

    passes = []
    for _ in range(records):
        x = {"own": text(16, 0.6), "new": text(30, 0.6)}
        for key in ("own", "new", "own", "new"):
            y, bos = text(120, 0.8), [1]
            for context, target in (
                ([], y), (system + x[key] + close[:5], y), ([], x[key]), (system + guess + y + close, x[key]),
            ):  # fmt: skip
                passes.append(Pass(np.asarray(bos + context + target, dtype=np.int32), 1 + len(context)))
    return passes, [(1, *system), (1, *system, *guess)]


def operations(model, tokens: int, targets: int, pairs: float) -> float:
    """Useful floating point operations: the layers' products, the output layer at targets, attention over pairs."""
    layers = sum(m.weight.numel() for n, m in linears(model))
    config = model.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * pairs
    return 2 * layers * tokens + 2 * config.hidden_size * config.vocab_size * targets + attention


def linears(model):
    head = model.get_output_embeddings()
    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]


def peak(model, device: str, tokens: int, seconds: float = 4.0) -> float:
    """Operations a CPU second (GPU: wall second) of the model's matrix products at `tokens` rows, best of several."""
    head = model.get_output_embeddings()
    shapes: dict[tuple[int, int], int] = {}
    for _, module in [*linears(model), ("head", head)]:
        shapes[tuple(module.weight.shape)] = shapes.get(tuple(module.weight.shape), 0) + 1
    total = spent = 0.0
    for (rows, columns), count in shapes.items():
        x = torch.randn(tokens, columns, device=device, dtype=head.weight.dtype)
        w = torch.randn(rows, columns, device=device, dtype=head.weight.dtype)
        best, until = float("inf"), time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < until:
            start = clock(device)
            F.linear(x, w)
            best = min(best, clock(device) - start)
        total += 2 * tokens * rows * columns * count
        spent += best * count
    return total / spent


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(name: str, device: str, work: Callable[[], list[float]], tokens: int, flops: float) -> Measured:
    peak_bytes, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not stop.wait(0.02):
            peak_bytes = max(peak_bytes, psutil.Process().memory_info().rss)

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        work()  # first kernels are chosen and memory is pooled here
    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    losses = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    stop.set()
    watcher.join()
    if device.startswith("cuda"):
        peak_bytes = torch.cuda.max_memory_allocated()
    return Measured(name, seconds, cpu, tokens, flops, peak_bytes, losses)


@torch.inference_mode()
def one_by_one(model, passes: Sequence[Pass]) -> list[float]:
    found = []
    for one in passes:
        ids = torch.from_numpy(one.ids.astype(np.int64))[None].to(model.device)
        labels = ids.clone()
        labels[:, : one.start] = -100
        found.append(model(input_ids=ids, labels=labels).loss.item())
    return found


@torch.inference_mode()
def padded(model, passes: Sequence[Pass], size: int) -> list[float]:
    found: list[float] = []
    for first in range(0, len(passes), size):
        members = passes[first : first + size]
        width = max(len(p.ids) for p in members)
        ids = torch.zeros((len(members), width), dtype=torch.int64)
        mask, wanted = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, one in enumerate(members):
            ids[row, : len(one.ids)] = torch.from_numpy(one.ids.astype(np.int64))
            mask[row, : len(one.ids)] = 1
            wanted[row, one.start : len(one.ids)] = 1
        ids, mask, wanted = (t.to(model.device) for t in (ids, mask, wanted))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(members), -1)
        kept = nll * wanted[:, 1:]
        found += (kept.sum(1) / wanted[:, 1:].sum(1)).tolist()
    return found


def ours(forward: Forward, passes: Sequence[Pass], budget: int, prefixes: list[tuple[int, ...]]) -> list[float]:
    distinct = {one.key: one for one in passes}
    sums = dict(zip(distinct, Scorer(forward, budget, prefixes).score(list(distinct.values())), strict=True))
    return [float(sums[one.key]) / one.n_scored for one in passes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="checkpoint directory; needs --data")
    parser.add_argument("--data", type=Path, help="Alpaca JSON to take texts and lengths from")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, synthetic lengths")
    parser.add_argument("--records", type=int, default=24, help="records of four candidates for (b) and (c)")
    parser.add_argument("--baseline-records", type=int, default=0, help="records for (a); 0 = the same")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--budget", type=int, default=0, help="tokens per forward pass in (c)")
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch in (b)")
    parser.add_argument("--no-prefix", action="store_true", help="(c) without shared beginnings")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = options.device, getattr(torch, options.dtype)
    if options.shape:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[options.shape]), dtype=dtype)
        forward = Forward(model.eval().requires_grad_(False))
        passes, prefixes = synthetic(options.records, forward.vocab_size)
    else:
        forward = load_model(options.student, dtype, device)
        model = forward.model
        passes, prefixes = from_data(options.student, options.data, options.records, "vicuna")
    if options.no_prefix:
        prefixes = []
    budget = options.budget or default_token_budget(torch.device(device).type)

    def cost(chosen: Sequence[Pass], everywhere: bool = False) -> tuple[int, float]:
        tokens = sum(len(p.ids) for p in chosen)
        targets = tokens if everywhere else sum(p.n_scored for p in chosen)
        return tokens, operations(model, tokens, targets, sum(len(p.ids) ** 2 / 2 for p in chosen))

    distinct = list({one.key: one for one in passes}.values())
    tokens, flops = cost(distinct)
    if forward.shares_prefixes:
        for one in distinct:
            fitting = (p for p in prefixes if tuple(one.ids[: len(p)].tolist()) == p and len(p) < one.start)
            skip = max(map(len, fitting), default=0)
            tokens -= skip
            flops -= operations(model, skip, 0, skip**2 / 2)
    few = passes[: 16 * (options.baseline_records or options.records)]
    model_peak = peak(model, device, budget)
    # One thread's peak a CPU second, or the GPU's a second.
    print(
        f"peak of the model's matrix products at {budget} rows: {model_peak / 1e9:,.0f} GFLOP/s"
        + ("" if device.startswith("cuda") else " a CPU second")
    )
    results = [
        (len(few) / 16, measure("(a) one by one, labels=", device, lambda: one_by_one(model, few), *cost(few, True))),
        (options.records, measure(
            f"(b) padded, {options.batch} in file order", device, lambda: padded(model, passes, options.batch),
            *cost(passes, True))),
        (options.records, measure(
            "(c) srt-assets", device, lambda: ours(forward, passes, budget, prefixes), tokens, flops)),
    ]  # fmt: skip
    base_records, base = results[0]
    print("| way | records/s | CPU s/record | tokens/s | speed-up | CPU s saved | peak memory | share of peak |")
    print("|---|---|---|---|---|---|---|---|")
    for records, one in results:
        spent = one.seconds if device.startswith("cuda") else one.cpu_seconds
        speedup = (records / one.seconds) / (base_records / base.seconds)
        saved = (base.cpu_seconds / base_records) / (one.cpu_seconds / records)
        share = one.flops / spent / model_peak
        rates = f"{records / one.seconds:.3f} | {one.cpu_seconds / records:.3f} | {one.tokens / one.seconds:,.0f}"
        memory = f"{one.peak_bytes / 2**30:.2f} GiB"
        print(f"| {one.name} | {rates} | {speedup:.2f} x | {saved:.2f} x | {memory} | {share:.2f} |")
    for _, one in results[1:]:
        worst = max(abs(a - b) for a, b in zip(base.losses, one.losses, strict=False))
        print(f"largest difference of a loss from (a): {one.name} {worst:.1e}")


if __name__ == "__main__":
    main()
