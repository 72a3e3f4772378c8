"""Metrics, result files and reports."""
