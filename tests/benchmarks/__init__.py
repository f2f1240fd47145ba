"""Benchmarks: scripts that print ratios and assert nothing about time."""
