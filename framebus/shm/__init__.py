"""Shared memory on Linux: files in /dev/shm, their mappings and locks, and the futex."""
