"""Measure one contender once, in this process, and print its figures as one line of JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from typing import TYPE_CHECKING

from benchmarks.scenarios import load_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.model import Contender, Scenario


# Ray gives the memory of dropped objects back once a second: the counted pass finds it free.
_PAUSE_S = 1.2


def _join(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False)


def _check(figures: Mapping[str, float], scenario: Scenario) -> None:
    expected = {metric.name for metric in scenario.metrics}
    if set(figures) != expected:
        raise RuntimeError(f"{scenario.name} got the metrics {sorted(figures)}, but wants {sorted(expected)}")


def measure(scenario: Scenario, contender: Contender) -> Mapping[str, float]:
    """Make the warm-up passes and the counted one.

    The warm-up is the same for everyone: modules are imported, files are in the page cache, Ray's
    worker processes are there, and the garbage collector has gone through it all: with torch loaded
    that takes a tenth of a second, in the middle of somebody's pass.

    Args:
        scenario: Says which metrics are expected.
        contender: What to run.

    Returns:
        The figures of the counted pass.

    Raises:
        RuntimeError: The contender reports other metrics than the scenario's.
    """
    if not contender.warms_itself:
        for _ in range(scenario.num_warm_ups):
            contender.measure()
        gc.collect()
        time.sleep(_PAUSE_S)
    figures = contender.measure()
    _check(figures, scenario)
    return figures


def main() -> None:
    """Run the contender that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("contender")
    parser.add_argument("--ray-address")
    arguments = parser.parse_args()
    # Libraries print too: only the figures may reach the standard output.
    answers = os.dup(1)
    os.dup2(2, 1)
    scenario = load_scenario(arguments.scenario)
    contender = scenario.contender(arguments.contender)
    if contender.on_cluster:
        _join(arguments.ray_address)
    figures = measure(scenario, contender)
    os.write(answers, json.dumps(dict(figures)).encode() + b"\n")


if __name__ == "__main__":
    main()
