"""Errors for exhausted descriptors and memory.

Source: open(2), EMFILE and ENFILE; mmap(2), ENOMEM.
"""

from __future__ import annotations

import errno
import resource

from framebus.errors import ResourceExhausted


def exhausted(error: OSError) -> ResourceExhausted | None:
    """Convert the kernel's error if descriptors or memory have run out, else return ``None``."""
    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ResourceExhausted(
            errno.EMFILE,
            f"this process has all of its {soft} descriptors open (the hard limit is {hard}), a publisher takes 4 and "
            "1 for each subscriber, a subscriber 3: raise RLIMIT_NOFILE (ulimit -n, ulimits: nofile in compose), or "
            "close what is not needed",
        )
    if error.errno == errno.ENFILE:
        return ResourceExhausted(
            errno.ENFILE, "this host has all of its descriptors open: raise fs.file-max, or close what is not needed"
        )
    if error.errno == errno.ENOMEM:
        return ResourceExhausted(
            errno.ENOMEM,
            "this process can map no more memory: raise RLIMIT_AS or vm.max_map_count, or open fewer streams",
        )
    return None
