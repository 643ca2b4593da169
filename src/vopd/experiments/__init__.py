"""Experiments that ship with the package: the embedded pair of models, the demo, comparisons, gradient variance."""
