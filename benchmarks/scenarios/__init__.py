"""Find the scenarios: every module of this package defines one, as `SCENARIO`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from benchmarks.model import Scenario

# The order in which they are listed, run and reported; scenarios not named here follow.
_ORDER = (
    "scan",
    "first_batch",
    "small_batches",
    "wide",
    "collate",
    "blocking_trainer",
    "early_exit",
    "loop_lag",
    "metadata",
    "worker_scaling",
    "slow_consumer",
    "splits",
    "images",
)


def scenario_names() -> list[str]:
    """List the scenarios."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return [name for name in _ORDER if name in found] + sorted(found - set(_ORDER))


def load_scenario(name: str) -> Scenario:
    """Load one scenario.

    Raises:
        ValueError: There is none of that name, or its module calls it otherwise.
    """
    if name not in scenario_names():
        raise ValueError(f"no scenario {name!r}: choose among {', '.join(scenario_names())}")
    scenario = import_module(f"{__name__}.{name}").SCENARIO
    if not isinstance(scenario, Scenario) or scenario.name != name:
        raise ValueError(f"{name}.SCENARIO has to be a Scenario whose name is {name!r}")
    return scenario
