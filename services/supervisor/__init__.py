"""Starts the services as processes of one machine or container, and ends them together."""
