"""Measures how much of a container image its work uses: ``python -m bench.image_usage IMAGE``; docs/image-usage.md."""
