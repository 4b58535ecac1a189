"""Prometheus metrics: what a process measured, and how its store stands, at `FIML_METRICS_ADDRESS`."""
