"""``onerec demo``: the DAGs, end to end, on a simulated landing zone."""
