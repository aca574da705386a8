"""Benchmarks: speed beside the peers, and scaling. They are not installed; run them from the repository root."""
