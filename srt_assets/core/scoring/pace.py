"""Chunk sizes: chunks of whole samples that take about a fixed time, estimated from the chunks before."""

from collections.abc import Iterable, Iterator

from srt_assets.core.scoring.chunks import Item
from srt_assets.core.scoring.encoding import Texts

# Seconds per chunk: long enough to sort many sequences by length, short enough that a kill loses little work.
CHUNK_S = 12.0
# The first chunk has about one sample, because the device's speed is unknown.
_FIRST_CHARACTERS = 1_000
_GROWTH = 4


class Pace:
    """The number of characters for a chunk of about `CHUNK_S` seconds. Call `learn` after each finished chunk."""

    def __init__(self) -> None:
        self.characters = float(_FIRST_CHARACTERS)

    def learn(self, characters: int, seconds: float) -> None:
        """Adapt to a chunk of this many characters that took this long: grow at most fourfold, shrink at once."""
        fitting = CHUNK_S * characters / max(seconds, 1e-6)
        self.characters = max(1.0, min(fitting, _GROWTH * self.characters))


def chunks(missing: Iterable[tuple[str, str, Texts]], pace: Pace) -> Iterator[list[Item]]:
    """(sample_id, content_key, texts) in chunks of the pace's size. All candidates of a sample are in one chunk."""
    chunk: list[Item] = []
    size = 0
    for sample_id, content_key, texts in missing:
        if chunk and size >= pace.characters and chunk[-1].sample_id != sample_id:
            yield chunk
            chunk, size = [], 0
        chunk.append(Item(sample_id, content_key, texts))
        size += sum(map(len, texts))
    if chunk:
        yield chunk
