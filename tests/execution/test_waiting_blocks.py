"""Blocks that wait for an operator: as many as make jobs that are worth a task."""

from __future__ import annotations

from tests.execution.fakes import OPTIONS, IdsSource, settle
from tests.execution.runs import alone, plan, started


async def test_tiny_blocks_make_jobs_of_many_however_small_blocks_should_be() -> None:
    made = plan(IdsSource(80, 80), alone())
    async with started(made, OPTIONS.override(target_block_bytes=8)) as run:
        await run.started()
        [source] = run.runtime.running
        for one in range(80):
            source.produce(one)
        await settle(400)
        first = [task for task in run.runtime.running if task is not source]
        assert all(len(task.ids) == 1 for task in first), "nothing is known of their speed"
        for task in first:
            task.work_on()
        await settle()
        while run.take():
            await settle()
        later = [len(task.ids) for task in run.runtime.running if task is not source]
        assert later
        assert sum(later) / len(later) >= 16
