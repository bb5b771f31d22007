"""Measures where bytes are stored and what that costs: ``python -m bench.storage``. The answers are in docs/storage.md.

Each section is a module that answers a question of that page. It has a ``NAME``, and ``measure(form, place)`` returns
its tables.
"""
