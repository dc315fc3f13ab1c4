"""From shards to batches: the mixture of sources, packing, loading, statistics."""
