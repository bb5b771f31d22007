"""The services of the camera host: each a process of its own, joined by framebus alone."""
