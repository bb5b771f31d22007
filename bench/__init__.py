"""The benchmarks: what a hand-over costs with framebus and with its alternatives."""
