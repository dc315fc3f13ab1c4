"""DeepSpeed and the processes: engine, configuration, checkpoints, resharding, export."""
