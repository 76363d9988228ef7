"""From bundles to batches, on the consumer's side."""
