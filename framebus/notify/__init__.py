"""Notifications of new frames: their format, ZeroMQ's wire protocol, and the sockets of both sides."""
