"""Which sample ids were there before: eight bytes for each of them, where a set of texts takes a hundred and fifty."""

import numpy as np
import numpy.typing as npt

_Ids = npt.NDArray[np.uint64]


class Ids:
    """The ids seen so far, in sorted arrays of which each is at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[_Ids] = []

    def add(self, ids: list[str]) -> list[bool]:
        """For each of these ids (16 hex digits): is it the first of its kind, among these and all before?"""
        numbers: _Ids = np.array([int(id, 16) for id in ids], dtype=np.uint64)
        is_new = np.zeros(len(numbers), dtype=bool)
        is_new[np.unique(numbers, return_index=True)[1]] = True
        for run in self._runs:
            places = np.searchsorted(run, numbers)
            is_new &= run[np.minimum(places, len(run) - 1)] != numbers
        if is_new.any():
            self._runs.append(np.sort(numbers[is_new]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]
        return is_new.tolist()
