"""Groups sequences into batches by common prefix and similar length, under a budget of tokens. Runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass

from srt_assets.core.scoring.encoding import Pass


@dataclass(frozen=True)
class Batch:
    """Passes (by index in the list of passes) for one forward pass, after a shared prefix.

    `tokens`: padded tokens, without the prefix and without the last token, which predicts nothing.
    """

    members: tuple[int, ...]
    prefix: tuple[int, ...] = ()
    tokens: int = 0

    def halves(self) -> tuple["Batch", "Batch"]:
        middle = len(self.members) // 2
        share = self.tokens // 2
        return (
            Batch(self.members[:middle], self.prefix, share),
            Batch(self.members[middle:], self.prefix, self.tokens - share),
        )


def plan(
    passes: Sequence[Pass], budget: int, prefixes: Sequence[tuple[int, ...]] = (), alone_from: int = 0
) -> list[Batch]:
    """Batches of at most `budget` padded tokens (a longer sequence goes alone), longest first.

    Longest first, so that a lack of memory shows early and the last batches are short. A pass uses the longest of
    `prefixes` that it begins with and that ends before the position that predicts its first scored token. A pass of
    more than `alone_from` tokens (0: no limit) gets a batch of its own.
    """
    groups: dict[tuple[tuple[int, ...], int | None], list[int]] = {}
    by_length = sorted(prefixes, key=len, reverse=True)
    for i, one in enumerate(passes):
        fitting = (p for p in by_length if len(p) < one.start and tuple(one.ids[: len(p)].tolist()) == p)
        alone = i if 0 < alone_from < len(one.ids) else None
        groups.setdefault((next(fitting, ()), alone), []).append(i)
    batches = []
    for (prefix, _), members in groups.items():
        members.sort(key=lambda i: len(passes[i].ids), reverse=True)
        start = 0
        while start < len(members):
            width = len(passes[members[start]].ids) - 1 - len(prefix)
            count = max(1, budget // width)
            chosen = tuple(members[start : start + count])
            batches.append(Batch(chosen, prefix, width * len(chosen)))
            start += len(chosen)
    batches.sort(key=lambda b: b.tokens // len(b.members), reverse=True)
    return batches
