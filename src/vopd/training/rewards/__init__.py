"""Rewards in addition to the teacher: functions that score whole completions, and their weights."""
