"""A model of framebus's slot protocol, which is checked state by state: see docs/verification.md."""
