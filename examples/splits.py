"""Share a dataset among consumers in other processes, on a Ray cluster that this program starts on this machine.

python examples/splits.py
"""

import asyncio

import ray

import aiodata

NUM_CONSUMERS = 2
NUM_EPOCHS = 2


async def count_rows(split: aiodata.SplitIterator) -> list[int]:
    """Return the rows that a split got in each epoch."""
    rows_by_epoch = []
    for _ in range(NUM_EPOCHS):
        # Epochs are in step: each begins when all consumers are there.
        rows = 0
        async for batch in split.aiter_batches(batch_size=1024):
            rows += len(batch["square"])
        rows_by_epoch.append(rows)
    return rows_by_epoch


@ray.remote(num_cpus=0)
def consume(split: aiodata.SplitIterator) -> list[int]:
    """Consume in a process of its own, which is given the handle of one split, not the dataset."""
    return aiodata.run(count_rows, split)


async def main() -> None:
    ds = aiodata.range(200_000).map_batches(lambda batch: {"square": batch["id"] ** 2})
    splits = ds.streaming_split(NUM_CONSUMERS)
    counts = await asyncio.gather(*[consume.remote(split) for split in splits])
    for epoch in range(NUM_EPOCHS):
        rows = [count[epoch] for count in counts]
        print(f"epoch {epoch}:", *(f"split {split}: {n:,}" for split, n in enumerate(rows)), f"all: {sum(rows):,}")
    print(f"\n{await splits[0].stats()}")


if __name__ == "__main__":
    asyncio.run(main())
