"""Grading of completions against reference answers. Nothing here loads torch: its worker processes start often."""
