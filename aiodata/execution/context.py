"""What the operators of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiodata.execution.budget import ByteBudget
from aiodata.execution.failures import SkippedErrors
from aiodata.execution.metadata import MetadataPrefetcher
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.plan.optimize import MapStage, ReadStage
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

    def resources(self, stage: ReadStage | MapStage) -> Resources:
        """Return what each task or actor of a stage takes and where it runs; the options say what its verb does not."""
        options = self.options
        if isinstance(stage, ReadStage):
            own = Resources(memory=options.read_memory, custom=options.read_resources or {})
        else:
            own = stage.resources
        return replace(
            own,
            scheduling_strategy=own.scheduling_strategy or options.scheduling_strategy,
            runtime_env=_joined(options.runtime_env, own.runtime_env),
        )


def _joined(general: Mapping[str, Any] | None, special: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Join two runtime environments as Ray does those of a parent and its child: variables of both count."""
    if general is None or special is None:
        return special or general
    joined = {**general, **special}
    if "env_vars" in joined:
        joined["env_vars"] = {**general.get("env_vars", {}), **special.get("env_vars", {})}
    return joined
