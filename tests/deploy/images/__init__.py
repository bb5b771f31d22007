"""Tests of what the images are built with."""
