"""Files that training writes: checkpoints, logs, the model card."""
