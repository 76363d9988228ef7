"""Ask Ray what its object store holds, and what it has written to disk."""

from __future__ import annotations


def store_used_bytes() -> float:
    """Return the bytes that the object stores of the cluster hold."""
    import ray

    total: float = ray.cluster_resources()["object_store_memory"]
    return total - float(ray.available_resources().get("object_store_memory", 0.0))


def spilled_bytes() -> int:
    """Return the bytes that the cluster has written to disk since it was started."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)
