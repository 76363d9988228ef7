"""How bundles become batches: the arguments of `Dataset.aiter_batches`, validated once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aiodata.errors import OptionError
from aiodata.formats import Format, get_format
from aiodata.options import at_least, settle, shown, true_or_false

# Workers of a collate function by default, at most.
_MAX_DEFAULT_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How bundles become batches; see `Dataset.aiter_batches` and `Dataset.aiter_torch_batches`."""

    batch_size: int | None = 256
    batch_format: str = "numpy"
    dtypes: Any = None
    nulls: str | None = None
    prefetch_batches: int = 2
    max_prefetch_bytes: int | None = None
    drop_last: bool = False
    local_shuffle_buffer_size: int | None = None
    local_shuffle_seed: int | None = None
    collate_fn: Callable[[Any], Any] | None = None
    collate_workers: int | None = None
    finalize_fn: Callable[[Any], Any] | None = None
    prefetch_to_device: int = 1

    def __post_init__(self) -> None:
        """Validate every field once.

        Raises:
            OptionError: A value that can not work.
        """
        buffer_size = self.local_shuffle_buffer_size
        settle(
            self,
            batch_size=at_least("batch_size", self.batch_size, 1, optional=True),
            prefetch_batches=at_least("prefetch_batches", self.prefetch_batches, 0),
            max_prefetch_bytes=at_least("max_prefetch_bytes", self.max_prefetch_bytes, 1, optional=True),
            drop_last=true_or_false("drop_last", self.drop_last),
            local_shuffle_buffer_size=at_least("local_shuffle_buffer_size", buffer_size, 1, optional=True),
            local_shuffle_seed=at_least("local_shuffle_seed", self.local_shuffle_seed, 0, optional=True),
            collate_workers=at_least("collate_workers", self.collate_workers, 1, optional=True),
            prefetch_to_device=at_least("prefetch_to_device", self.prefetch_to_device, 0),
        )
        self._check_combinations()
        self.make_format()

    @property
    def workers(self) -> int:
        """Calls of the collate function that run at a time, at most."""
        return self.collate_workers or max(1, min(_MAX_DEFAULT_WORKERS, self.prefetch_batches))

    @property
    def is_order_asked_for(self) -> bool:
        """Whether the batches' order is to be the same again: that is what a seed is for."""
        return self.local_shuffle_seed is not None

    def make_format(self) -> Format:
        """Return the batches' format: what a consumer writes into a batch reaches nobody else."""
        return get_format(self.batch_format, self.dtypes, nulls=self.nulls, writable=True)

    def with_seed(self) -> BatchOptions:
        """Return the options with a seed of their own, where they shuffle and none was given."""
        if self.local_shuffle_buffer_size is None or self.local_shuffle_seed is not None:
            return self
        return replace(self, local_shuffle_seed=secrets.randbits(64))

    def _check_combinations(self) -> None:
        for name in ("collate_fn", "finalize_fn"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise OptionError(f"{name}={shown(function)} must be a function of a batch")
        if self.local_shuffle_seed is not None and self.local_shuffle_buffer_size is None:
            raise OptionError(
                f"local_shuffle_seed={self.local_shuffle_seed!r} needs local_shuffle_buffer_size: "
                "the number of rows to draw batches from"
            )
        if self.local_shuffle_buffer_size is not None and self.batch_size is None:
            raise OptionError("local_shuffle_buffer_size needs a batch_size: whole blocks can not be shuffled")
        if self.collate_workers is not None and self.collate_fn is None:
            raise OptionError(f"collate_workers={self.collate_workers!r} needs a collate_fn")
