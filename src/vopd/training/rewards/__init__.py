"""Rewards beside the teacher: functions that score whole completions, and their weights."""
