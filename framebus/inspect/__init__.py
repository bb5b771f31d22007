"""Inspection of /dev/shm: streams, their subscribers, and leftovers of dead processes. It never takes a lease."""
