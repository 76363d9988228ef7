"""From bundles to splits: epochs and assignment without I/O, and the coordinator that hosts an execution."""

from aiodata.coordination.coordinator import Coordinator
from aiodata.coordination.distribution import MAX_BUNDLES
from aiodata.coordination.epoch import DELIVERY_BYTES
from aiodata.coordination.gathering import describe_splits
from aiodata.coordination.lease import Delivery, Lease

__all__ = ["DELIVERY_BYTES", "MAX_BUNDLES", "Coordinator", "Delivery", "Lease", "describe_splits"]
