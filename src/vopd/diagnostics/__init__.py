"""Measurements at fixed parameters: how noisy a gradient is, and what of the noise an estimator removes."""

from .gradient_noise import GradientNoise, gradient_noise

__all__ = ["GradientNoise", "gradient_noise"]
