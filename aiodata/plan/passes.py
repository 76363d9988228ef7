"""Pass: which pass over a dataset a run is, so that what is to differ between passes can."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

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

    def shuffled(self, blocks: Iterable[T], this_pass: Pass) -> list[T]:
        """Return blocks in the order of a pass."""
        listed = list(blocks)
        return [listed[index] for index in self.order(len(listed), this_pass)]

    def order(self, num_blocks: int, this_pass: Pass) -> Sequence[int]:
        """Return the order of so many blocks, a permutation; it depends on nothing but the arguments and the seed.

        Example:
            >>> shuffle = BlockShuffle(seed=7)
            >>> [list(shuffle.order(5, Pass(epoch))) for epoch in (0, 1, 0)]
            [[4, 1, 0, 2, 3], [4, 0, 3, 1, 2], [4, 1, 0, 2, 3]]
        """
        seed = this_pass.seed if self.seed is None else self.seed
        # NumPy promises that this generator draws the same numbers in all its versions.
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, this_pass.epoch])))
        order: list[int] = generator.permutation(num_blocks).tolist()
        return order
