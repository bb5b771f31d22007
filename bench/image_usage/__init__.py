"""How much of a container image does its work use? ``python -m bench.image_usage IMAGE``; docs/image-usage.md."""
