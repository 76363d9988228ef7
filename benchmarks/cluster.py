"""Keep one Ray cluster for an invocation: the workers join it, so that nobody pays its start."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environment import num_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

_STOP_TIMEOUT_S = 30.0

# The store's memory is touched before anything is measured: the first use of a page costs more than all else that is
# done to it, and a cluster that has run for a while has paid for that. For that it has to be small enough.
_STORE_BYTES = 2 << 30
_TOUCH_STORE = {"RAY_preallocate_plasma_memory": "1"}

# A raylet reports its free resources every 100 ms by default: too coarse to time an exit that
# takes less. At 10 ms the raylet still uses less than one percent of a core.
_REPORT_PERIOD_MS = 10

# Ray protects a cluster that it starts with a token, which whoever joins has to know. The cluster
# is the harness's own, so is the token: a new one for each invocation, handed on in the
# environment of its processes and never written to disk.
_TOKEN = secrets.token_hex(32)


def child_environment() -> dict[str, str]:
    """Return the environment of every process of the harness, and of Ray's workers below them.

    Ray's workers import the functions of the scenarios by name, so `benchmarks` has to be found.
    """
    root = str(Path(__file__).resolve().parent.parent)
    search_path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join(search_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextmanager
def local_cluster() -> Iterator[str]:
    """Start a cluster in a process of its own, and stop it at the end.

    Yields:
        The address to join it at.

    Raises:
        RuntimeError: The cluster did not start.
    """
    host = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child_environment() | _TOUCH_STORE,
    )
    try:
        assert host.stdout is not None
        line = host.stdout.readline()
        if not line:
            raise RuntimeError("the Ray cluster did not start: `python -m benchmarks.cluster` says why")
        yield str(json.loads(line)["address"])
    finally:
        _stop(host)


# Memory of dropped objects is given back this often, as in a cluster that aiodata starts; Ray's default is a second.
_FREE_PERIOD_MS = 100


def _stop(host: subprocess.Popen[str]) -> None:
    assert host.stdin is not None
    host.stdin.close()
    try:
        host.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        host.kill()
        host.wait()


def _host() -> None:
    """Hold a cluster until standard input ends, which it also does when the harness dies."""
    answers = os.dup(1)
    os.dup2(2, 1)
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus(),
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={
            "raylet_report_resources_period_milliseconds": _REPORT_PERIOD_MS,
            "free_objects_period_milliseconds": _FREE_PERIOD_MS,
        },
    )
    address = ray.get_runtime_context().gcs_address
    os.write(answers, json.dumps({"address": address}).encode() + b"\n")
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    _host()
