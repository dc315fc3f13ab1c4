"""Shards: webdataset tars with a manifest, written atomically, read by index, checked and counted."""
