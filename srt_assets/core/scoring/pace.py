"""How much work to hand out at a time: chunks of whole samples that take a set time, learned from those before."""

from collections.abc import Iterable, Iterator

from srt_assets.core.scoring.chunks import Item
from srt_assets.core.scoring.encoding import Texts

# Long enough to sort many sequences by length, short enough that a kill loses little.
CHUNK_S = 12.0
# About one sample: it is not known yet whether the device takes a millisecond or a minute for it.
_FIRST_CHARACTERS = 1_000
_GROWTH = 4


class Pace:
    """How many characters of candidates make a chunk of about `CHUNK_S` seconds; `learn` after each finished one."""

    def __init__(self) -> None:
        self.characters = float(_FIRST_CHARACTERS)

    def learn(self, characters: int, seconds: float) -> None:
        """Text of this length took so long on one device; grows carefully, shrinks at once."""
        fitting = CHUNK_S * characters / max(seconds, 1e-6)
        self.characters = max(1.0, min(fitting, _GROWTH * self.characters))


def chunks(missing: Iterable[tuple[str, str, Texts]], pace: Pace) -> Iterator[list[Item]]:
    """(sample_id, content_key, texts) as chunks of the pace's size; a sample's candidates are never parted."""
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
