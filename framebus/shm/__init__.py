"""What Linux gives for sharing memory between processes: files in /dev/shm, their maps and locks, the futex."""
