"""How fast scoring is: the paper's way, plain batches, and this project's, in one run on the same passes.

    python benchmarks/scoring.py --student DIR --data alpaca.json --records 24            # CPU
    python benchmarks/scoring.py --shape 1b --device cuda:0 --dtype bfloat16 --records 512  # GPU, random weights

(a) batch of one, four passes for each of four candidates, `labels=`; (b) padded batches in file order, attention
mask, full logits; (c) the scorer behind `student_scores`. A record is four candidates. The peak is the speed of the
model's own matrix products, measured in the same run, each core with one of its own; the share counts useful operations
only (no padding, nothing computed twice). CPU seconds are of the whole process. The ways take turns, a share of the
records at a time, so that whatever else the machine does falls on all of them.
"""

import argparse
import json
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from srt_assets.core.scoring.chunks import shared_beginnings
from srt_assets.core.scoring.devices import default_token_budget
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.scoring.model import Forward
from srt_assets.core.scoring.proof import prove
from srt_assets.core.scoring.ready import load_model
from srt_assets.core.scoring.scorer import Scorer, lanes
from srt_assets.core.students.loading import load_tokenizer
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
    """What one way took, over all its turns."""

    name: str
    records: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    cpu_each_turn: list[float] = field(default_factory=list)


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


def peak(model, device: str, tokens: int, cores: int, seconds: float = 4.0) -> float:
    """Operations a CPU second (GPU: wall second) of the model's matrix products at `tokens` rows, best of several."""
    head = model.get_output_embeddings()
    shapes: dict[tuple[int, int], int] = {}
    for _, module in [*linears(model), ("head", head)]:
        shapes[tuple(module.weight.shape)] = shapes.get(tuple(module.weight.shape), 0) + 1

    def best(shape: tuple[int, int]) -> float:
        x = torch.randn(tokens, shape[1], device=device, dtype=head.weight.dtype)
        w = torch.randn(*shape, device=device, dtype=head.weight.dtype)
        found, until = float("inf"), time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < until:
            start = clock(device)
            F.linear(x, w)
            found = min(found, clock(device) - start)
        return found

    each = 1 if device.startswith("cuda") else cores
    total = spent = 0.0
    with lanes(each, 1) as pool:
        for shape, count in shapes.items():
            total += 2 * tokens * math.prod(shape) * count
            spent += min(pool.map(best, [shape] * each)) * count
    return total / spent


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def measure(one: Measured, device: str, records: int, work: Callable[[], list[float]], tokens: int, flops: float):
    """Let one way do its turn and add up what it took. Memory counts in the first turn, before others left theirs."""
    first, peak_bytes, stop = not one.records, 0, threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not stop.wait(0.02):
            peak_bytes = max(peak_bytes, psutil.Process().memory_info().rss)

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        if first:
            work()  # first kernels are chosen and memory is pooled here
    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    one.losses += work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    stop.set()
    watcher.join()
    one.records += records
    one.seconds += seconds
    one.cpu_seconds += cpu
    one.tokens += tokens
    one.flops += flops
    one.cpu_each_turn.append(cpu)
    if first:
        one.peak_bytes = torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak_bytes


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


def ours(scorer: Scorer, passes: Sequence[Pass]) -> list[float]:
    distinct = {one.key: one for one in passes}
    sums = dict(zip(distinct, scorer.score(list(distinct.values())), strict=True))
    return [float(sums[one.key]) / one.n_scored for one in passes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="checkpoint directory; needs --data")
    parser.add_argument("--data", type=Path, help="Alpaca JSON to take texts and lengths from")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, synthetic lengths")
    parser.add_argument("--records", type=int, default=24, help="records of four candidates")
    parser.add_argument("--turns", type=int, default=4, help="shares of the records: every way does each in turn")
    parser.add_argument("--ways", default="acb", help="which of (a), (b), (c), in which order; (a) is needed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cores", type=int, default=torch.get_num_threads(), help="of the CPU, for all ways")
    parser.add_argument("--budget", type=int, default=0, help="tokens per forward pass in (c)")
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch in (b)")
    parser.add_argument("--no-prefix", action="store_true", help="(c) without shared beginnings")
    options = parser.parse_args()
    if not {"a"} <= set(options.ways) <= set("abc"):
        parser.error(f"--ways {options.ways}: letters of abc, with a among them, such as ac")
    torch.set_num_threads(options.cores)
    device, dtype = options.device, getattr(torch, options.dtype)
    on_gpu = device.startswith("cuda")
    if options.shape:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[options.shape]), dtype=dtype)
        model.eval().requires_grad_(False)
        forward = Forward(model, prove(model).ways)
        passes, prefixes = synthetic(options.records, forward.vocab_size)
    else:
        forward, _ = load_model(options.student, dtype, device)
        model = forward.model
        passes, prefixes = from_data(options.student, options.data, options.records, "vicuna")
    if options.no_prefix:
        prefixes = []
    budget = options.budget or default_token_budget(torch.device(device).type)
    scorer = Scorer(forward, budget, prefixes, options.cores)

    def cost(chosen: Sequence[Pass], everywhere: bool = False) -> tuple[int, float]:
        tokens = sum(len(p.ids) for p in chosen)
        targets = tokens if everywhere else sum(p.n_scored for p in chosen)
        return tokens, operations(model, tokens, targets, sum(len(p.ids) ** 2 / 2 for p in chosen))

    def least(chosen: Sequence[Pass]) -> tuple[int, float]:
        """Tokens and operations of (c): equal passes once, beginnings and last tokens not at all."""
        distinct = list({one.key: one for one in chosen}.values())
        tokens, flops = cost(distinct)
        for one in distinct:
            fitting = (p for p in scorer.prefixes if tuple(one.ids[: len(p)].tolist()) == p and len(p) < one.start)
            skip = max(map(len, fitting), default=0)
            tokens -= skip + 1
            flops -= operations(model, skip + 1, 0, skip**2 / 2)
        return tokens, flops

    model_peak = peak(model, device, budget, options.cores)
    print(
        f"peak of the model's matrix products at {budget} rows: {model_peak / 1e9:,.0f} GFLOP/s"
        + ("" if on_gpu else " a CPU second")
    )
    a = Measured("(a) one by one, labels=")
    b = Measured(f"(b) padded, {options.batch} in file order")
    c = Measured("(c) srt-assets")
    per_turn = math.ceil(options.records / options.turns)
    size = len(passes) // options.records  # a record's passes, but for the few that have no number
    for first in range(0, options.records, per_turn):
        records = min(per_turn, options.records - first)
        last = first + records
        mine = passes[first * size : last * size if last < options.records else None]
        for way in options.ways:
            if way == "a":
                measure(a, device, records, lambda few=mine: one_by_one(model, few), *cost(mine, True))
            elif way == "b":
                measure(b, device, records, lambda few=mine: padded(model, few, options.batch), *cost(mine, True))
            else:
                measure(c, device, records, lambda few=mine: ours(scorer, few), *least(mine))
    print("| way | records/s | CPU s/record | tokens/s | speed-up | CPU s saved | peak memory | share of peak |")
    print("|---|---|---|---|---|---|---|---|")
    measured = [one for one in (a, b, c) if one.records]
    for one in measured:
        share = one.flops / (one.seconds if on_gpu else one.cpu_seconds) / model_peak
        rates = f"{one.records / one.seconds:.3f} | {one.cpu_seconds / one.records:.3f} | "
        rates += f"{one.tokens / one.seconds:,.0f}"
        ratios = f"{a.seconds / one.seconds:.2f} x | {a.cpu_seconds / one.cpu_seconds:.2f} x"
        print(f"| {one.name} | {rates} | {ratios} | {one.peak_bytes / 2**30:.2f} GiB | {share:.2f} |")
    for one in measured[1:]:
        turns = [base / mine for base, mine in zip(a.cpu_each_turn, one.cpu_each_turn, strict=True)]
        worst = max(abs(x - y) for x, y in zip(a.losses, one.losses, strict=True))
        print(
            f"{one.name}: CPU seconds saved in each turn {', '.join(f'{t:.2f} x' for t in turns)}; "
            f"largest difference of a loss from (a) {worst:.1e}"
        )


if __name__ == "__main__":
    main()
