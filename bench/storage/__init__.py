"""Where bytes lie and what that costs: ``python -m bench.storage``. docs/storage.md holds the answers.

A section is a module with a question of that page: ``NAME`` and ``measure(form, place)``, which returns its tables.
"""
