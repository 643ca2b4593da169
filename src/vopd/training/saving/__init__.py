"""What a run leaves on disk: checkpoints, logs, the model card."""
