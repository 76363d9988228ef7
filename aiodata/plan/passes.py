"""Pass: which pass over a dataset a run is, so that what is to differ between passes can."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a dataset.

    Attributes:
        epoch: Its number, from 0.
        seed: What is random in it and has no seed of its own follows from this and the number. All passes of one
            `Batches`, or of one set of splits, have the same.
    """

    epoch: int = 0
    seed: int = 0


FIRST_PASS = Pass()


def draw_seed() -> int:
    """Return a seed that nobody can tell beforehand."""
    return secrets.randbits(63)


@dataclass(frozen=True, slots=True)
class BlockShuffle:
    """Another order of a source's blocks in each pass.

    Attributes:
        seed: The order follows from this and the number of the pass; None: from the seed of the pass.
    """

    seed: int | None = None

    def shuffled(self, blocks: Sequence[T], this_pass: Pass) -> Sequence[T]:
        """Return blocks in the order of a pass; each is asked for when it is its turn."""
        return _Reordered(blocks, self.order(len(blocks), this_pass))

    def order(self, num_blocks: int, this_pass: Pass) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the order of so many blocks, a permutation; it depends on nothing but the arguments and the seed.

        Example:
            >>> shuffle = BlockShuffle(seed=7)
            >>> [shuffle.order(5, Pass(epoch)).tolist() for epoch in (0, 1, 0)]
            [[4, 1, 0, 2, 3], [4, 0, 3, 1, 2], [4, 1, 0, 2, 3]]
        """
        seed = this_pass.seed if self.seed is None else self.seed
        # NumPy promises that this generator draws the same numbers in all its versions.
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, this_pass.epoch])))
        return generator.permutation(num_blocks)


class _Reordered(Sequence[T]):
    """A sequence in another order."""

    def __init__(self, items: Sequence[T], order: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._items = items
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return _Reordered(self._items, self._order[index])
        return self._items[int(self._order[index])]
