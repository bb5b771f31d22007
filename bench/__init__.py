"""The benchmarks: what a hand-over costs with framebus, and with what one would take instead."""
