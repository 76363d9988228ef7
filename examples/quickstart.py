"""Stream batches into an asyncio program, on data that this program makes itself.

python examples/quickstart.py
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

import aiodata


def make_data(directory: Path) -> None:
    """Write four Parquet files of 50,000 sensor readings each."""
    random = np.random.default_rng(0)
    for part in range(4):
        readings = {"sensor": random.integers(0, 100, 50_000), "celsius": random.normal(20.0, 5.0, 50_000)}
        pyarrow.parquet.write_table(pa.table(readings), directory / f"part-{part}.parquet", row_group_size=10_000)


def to_fahrenheit(batch: dict[str, Any]) -> dict[str, Any]:
    """Add a column; runs in the workers."""
    return {**batch, "fahrenheit": batch["celsius"] * 9 / 5 + 32}


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        make_data(Path(directory))

        # A recipe: nothing is read yet.
        ds = aiodata.read_parquet(directory).filter(pc.field("celsius") > 25.0).map_batches(to_fahrenheit)
        print(ds.explain())

        rows, total = 0, 0.0
        async for batch in ds.aiter_batches(batch_size=1024):
            rows += len(batch["fahrenheit"])
            total += float(batch["fahrenheit"].sum())
        print(f"\n{rows:,} warm readings, {total / rows:.1f} °F on average")

        # Leaving early stops the reading behind it at once.
        async for batch in ds.aiter_batches(batch_size=5):
            print("the first five:", batch["fahrenheit"].round(1))
            break

        # Who keeps the iterator in a variable uses `async with`, and can ask where the time went.
        async with ds.aiter_batches() as batches:
            async for _ in batches:
                pass
        print(f"\n{batches.stats()}")


if __name__ == "__main__":
    asyncio.run(main())
