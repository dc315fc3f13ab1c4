"""Converters of other formats to shards."""
