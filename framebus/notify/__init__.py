"""The notifications of new frames: their bytes, ZeroMQ's wire protocol, and the sockets of both sides."""
