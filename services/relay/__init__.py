"""The relay: copies frames from a ring to the storage, and publishes references for detectors on other hosts."""
