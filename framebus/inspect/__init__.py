"""What lies in /dev/shm: streams, their subscribers, and leftovers of dead processes. Nothing here takes a lease."""
