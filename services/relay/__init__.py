"""The relay: takes frames out of a ring, puts them into the storage and tells detectors on other hosts of them."""
