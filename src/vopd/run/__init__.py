"""`vopd train`: its options, what is known before weights are loaded, and the trainer built from both."""
