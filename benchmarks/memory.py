"""Make tables in memory, and open them in Ray Data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.sources import quiet_ray_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    import ray.data

_SEED = 20_261


def numeric_chunks(num_rows: int, chunk_rows: int) -> list[pa.Table]:
    """Make chunks with the columns `id`, `x`, `y` and `label`: 28 bytes a row, ids from 0 on."""
    random = np.random.default_rng(_SEED)
    return [
        pa.table(
            {
                "id": np.arange(first, first + chunk_rows, dtype=np.int64),
                "x": random.standard_normal(chunk_rows),
                "y": random.random(chunk_rows, dtype=np.float32),
                "label": random.integers(0, 10, chunk_rows),
            }
        )
        for first in range(0, num_rows, chunk_rows)
    ]


def wide_chunks(num_chunks: int, chunk_rows: int, num_columns: int) -> list[pa.Table]:
    """Make chunks with the float64 columns `c0`, `c1` and so on."""
    random = np.random.default_rng(_SEED)
    return [
        pa.table({f"c{number}": random.random(chunk_rows) for number in range(num_columns)}) for _ in range(num_chunks)
    ]


def ray_data_blocks(chunks: Sequence[pa.Table], *, preserve_order: bool = False) -> ray.data.MaterializedDataset:
    """Put chunks into the object store, as one block each of a Ray Data dataset."""
    import ray.data

    quiet_ray_data()
    ray.data.DataContext.get_current().execution_options.preserve_order = preserve_order
    return ray.data.from_arrow(list(chunks)).materialize()
