"""A run of `vopd train`: what was asked for, what is known before a weight is loaded, and the trainer made of both."""
