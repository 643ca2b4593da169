"""Measurements at fixed parameters: how noisy a gradient is, and what of the noise an estimator removes."""

from .decomposition import Decomposition, Profile, Rollout, decompose_variance, variance_profile
from .gradient_noise import GradientNoise, gradient_noise

__all__ = [
    "Decomposition",
    "GradientNoise",
    "Profile",
    "Rollout",
    "decompose_variance",
    "gradient_noise",
    "variance_profile",
]
