"""Tests of the programs that build the images."""
