"""Which sample ids occurred before, and in which source. An id takes twelve bytes; in a dict it would take hundreds."""

import numpy as np
import numpy.typing as npt

_Ids = npt.NDArray[np.uint64]
_Sources = npt.NDArray[np.int32]
NEW = -1


class Ids:
    """The ids so far, in sorted arrays. Each array is at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[tuple[_Ids, _Sources]] = []

    def add(self, ids: list[str], sources: list[int]) -> list[int]:
        """For each of these ids (16 hex digits): NEW, or the source where it first occurred, now or earlier.

        `sources`: the number of the source of each id.
        """
        numbers: _Ids = np.array([int(id, 16) for id in ids], dtype=np.uint64)
        of: _Sources = np.array(sources, dtype=np.int32)
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        found = of[first][inverse]
        found[first] = NEW
        for run, run_sources in self._runs:
            places = np.minimum(np.searchsorted(run, numbers), len(run) - 1)
            is_old = run[places] == numbers
            found[is_old] = run_sources[places[is_old]]
        if (is_new := found == NEW).any():
            self._runs.append(_sorted(numbers[is_new], of[is_new]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            one, two = self._runs[-2:]
            self._runs[-2:] = [_sorted(np.concatenate((one[0], two[0])), np.concatenate((one[1], two[1])))]
        return found.tolist()


def _sorted(ids: _Ids, sources: _Sources) -> tuple[_Ids, _Sources]:
    order = np.argsort(ids, kind="stable")
    return ids[order], sources[order]
