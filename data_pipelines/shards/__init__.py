"""Shards: webdataset tars with a manifest, written whole, read by index, checked and counted."""
