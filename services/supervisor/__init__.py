"""The supervisor: starts the services as processes of one machine or container, and stops them together."""
