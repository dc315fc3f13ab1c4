"""Converters of other formats to shards, and the resumable job that they share."""
