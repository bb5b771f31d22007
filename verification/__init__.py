"""The slot protocol of framebus as a model, checked state by state: see docs/verification.md."""
