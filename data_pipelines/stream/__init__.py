"""From shards to batches: mixture of sources, packing, loading, statistics."""
