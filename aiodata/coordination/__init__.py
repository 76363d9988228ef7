"""From bundles to splits: epochs and assignment without I/O, and the coordinator that hosts an execution."""

from aiodata.coordination.coordinator import Coordinator, Delivery

__all__ = ["Coordinator", "Delivery"]
