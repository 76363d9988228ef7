"""What the operators of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from aiodata.execution.budget import ByteBudget
from aiodata.execution.failures import SkippedErrors
from aiodata.execution.metadata import MetadataPrefetcher
from aiodata.options import ExecutionOptions
from aiodata.plan.passes import Pass
from aiodata.runtime.base import Runtime


@dataclass(frozen=True, slots=True)
class RunContext:
    """A run: where and how it is executed, and its accounts.

    Attributes:
        runtime: Where its tasks run.
        options: How it is executed.
        budget: The bytes of its blocks.
        prefetcher: What fetches the metadata of its blocks.
        skipped: What failed and was skipped.
        this_pass: Which pass over the dataset it is.
    """

    runtime: Runtime
    options: ExecutionOptions
    budget: ByteBudget
    prefetcher: MetadataPrefetcher
    skipped: SkippedErrors
    this_pass: Pass
