"""What travels through a run: references to blocks, never the blocks themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from aiodata.origin import Origin, Spans, origin_of, slice_spans

# A runtime's own reference to a block: a Ray object reference, or an `InlineBlock`.
BlockRef = Any


class Charge:
    """What a block counts in the byte budget of its run, as long as something refers to it.

    Attributes:
        num_bytes: Bytes that are counted for it.
        is_over: Whether nothing refers to it any more.
    """

    __slots__ = ("is_over", "num_bytes")

    def __init__(self) -> None:
        """Count nothing yet."""
        self.num_bytes = 0
        self.is_over = False


@dataclass(frozen=True, slots=True, eq=False)
class InlineBlock:
    """A block that lives in this process; its own reference.

    Attributes:
        table: The block.
        charge: What it counts in its run's byte budget; None: nothing, since it was there before.
    """

    table: pa.Table
    charge: Charge | None = None


@dataclass(frozen=True, slots=True)
class BlockMetadata:
    """What is known of a block without fetching it.

    Attributes:
        num_rows: Rows in the whole block.
        num_bytes: Bytes of the whole block, as Arrow counts them.
        schema: The block's schema.
        source: Where its rows came from, for error messages.
        spans: Where each of its rows came from; empty: all that is known is `source`.
    """

    num_rows: int
    num_bytes: int
    schema: pa.Schema
    source: str = ""
    spans: Spans = ()


@dataclass(frozen=True, slots=True)
class RefBundle:
    """A reference to a block, its metadata, and the range of its rows that counts.

    A limit or a split narrows the range; it never copies the block. Nor does a union whose branches have other types:
    the rows conform to `conform_to` when they are fetched.
    """

    ref: BlockRef
    metadata: BlockMetadata
    start: int
    stop: int
    conform_to: pa.Schema | None = None

    @property
    def schema(self) -> pa.Schema:
        """The schema that its rows have once they are fetched."""
        return self.metadata.schema if self.conform_to is None else self.conform_to

    @property
    def origin(self) -> Origin:
        """Where its rows came from."""
        if not self.metadata.spans:
            return Origin(self.metadata.source, (self.start, self.stop))
        return origin_of(slice_spans(self.metadata.spans, self.start, self.num_rows))

    def conformed(self, schema: pa.Schema) -> RefBundle:
        """Return the same bundle, with rows of this schema."""
        return self if self.schema.equals(schema, check_metadata=True) else replace(self, conform_to=schema)

    @classmethod
    def whole(cls, ref: BlockRef, metadata: BlockMetadata) -> RefBundle:
        """Bundle all rows of a block."""
        return cls(ref, metadata, 0, metadata.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows in the range."""
        return self.stop - self.start

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows in the range, if all rows are alike; the block that they pin may be larger."""
        whole = self.metadata
        return whole.num_bytes * self.num_rows // max(1, whole.num_rows)

    def head(self, num_rows: int) -> RefBundle:
        """Return the same bundle narrowed to its first `num_rows` rows."""
        return replace(self, stop=min(self.stop, self.start + num_rows))

    def skip(self, num_rows: int) -> RefBundle:
        """Return the same bundle without its first `num_rows` rows."""
        return replace(self, start=min(self.stop, self.start + num_rows))
