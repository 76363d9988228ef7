"""Run a scenario's contenders in turn, each run in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.cluster import child_environment
from benchmarks.outcome import Measurement, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.model import Contender, Scenario

_RUN_TIMEOUT_S = 600.0
_REPORTED_LINES = 25


class RunFailedError(Exception):
    """A worker process failed; the message ends with what it wrote last."""


@dataclass(frozen=True, slots=True)
class Run:
    """Identify one process that is about to be started."""

    scenario: str
    contender: str
    number: int
    num_runs: int


def missing_modules(contender: Contender) -> list[str]:
    """List the modules that a contender needs and that are not installed."""
    return [module for module in contender.requires if not _installed(module)]


def _installed(module: str) -> bool:
    spec = find_spec(module)
    # A bare folder of that name would be found too, as a namespace package without an origin.
    return spec is not None and spec.origin is not None


def _run_worker(scenario: str, contender: Contender, address: str | None) -> Mapping[str, float]:
    command = [sys.executable, "-m", "benchmarks.worker", scenario, contender.name]
    if contender.on_cluster and address is not None:
        command += ["--ray-address", address]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailedError(f"no figures after {_RUN_TIMEOUT_S:g} s") from error
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-_REPORTED_LINES:])
        raise RunFailedError(f"exit status {done.returncode}\n{last}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def run_in_turn(
    scenario: Scenario,
    contenders: Sequence[Contender],
    *,
    num_runs: int,
    address: str | None,
    on_run: Callable[[Run], None] = lambda run: None,
) -> tuple[Measurement, ...]:
    """Run every contender once, then every one again, and so on.

    A load that comes and goes on the machine so meets all of them alike. A contender that fails
    is left out of the later rounds.

    Args:
        scenario: What is run.
        contenders: Those of the scenario's contenders that take part.
        num_runs: Counted runs of each contender.
        address: Where to join the Ray cluster, if any contender needs it.
        on_run: Called before each run.

    Returns:
        A measurement for each contender.
    """
    runs: dict[str, list[Mapping[str, float]]] = {}
    unmeasured: dict[str, Measurement] = {}
    for contender in contenders:
        runs[contender.name] = []
        missing = missing_modules(contender)
        if missing:
            reason = f"not installed: {', '.join(missing)}"
            unmeasured[contender.name] = Measurement(contender.name, Status.SKIPPED, reason)
    for number in range(1, num_runs + 1):
        for contender in contenders:
            if contender.name in unmeasured:
                continue
            on_run(Run(scenario.name, contender.name, number, num_runs))
            try:
                figures = _run_worker(scenario.name, contender, address)
            except RunFailedError as error:
                failure = Measurement(contender.name, Status.FAILED, str(error))
                unmeasured[contender.name] = failure
            else:
                runs[contender.name].append(figures)
    return tuple(
        unmeasured.get(name, Measurement(name, Status.MEASURED, runs=tuple(figures))) for name, figures in runs.items()
    )
