"""The detector: takes frames of the stream where they lie in shared memory, finds people in them, publishes boxes."""
