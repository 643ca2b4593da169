"""Scores with intervals, bootstrap over problems, paired tests."""
