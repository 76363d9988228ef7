"""Ask Ray what its object store holds, and look at what it has written to disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def store_used_bytes() -> float:
    """Return the bytes that the object stores of the cluster hold."""
    import ray

    total: float = ray.cluster_resources()["object_store_memory"]
    return total - float(ray.available_resources().get("object_store_memory", 0.0))


def spilled_bytes() -> int:
    """Return the bytes of objects that this node has on disk at the moment."""
    from ray._private.worker import global_worker

    num_bytes = 0
    for path in Path(global_worker.node.get_session_dir_path()).glob("ray_spilled_objects*/*"):
        with suppress(FileNotFoundError):  # It was deleted meanwhile.
            num_bytes += path.stat().st_size
    return num_bytes
