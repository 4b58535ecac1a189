"""Prometheus metrics at `FIML_METRICS_ADDRESS`: a process's measurements, and the state of its store."""
