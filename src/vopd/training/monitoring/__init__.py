"""Monitoring during training: metrics, guards, benchmark accuracy, and the terminal output."""
