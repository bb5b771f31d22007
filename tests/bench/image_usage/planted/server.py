"""Opens, reads and maps files in known ways, and waits until it is terminated."""

import mmap
import os
import signal

FOLDER = "/planted"
kept: list[object] = [os.open(f"{FOLDER}/opened.bin", os.O_RDONLY)]
for name, page in (("one-page", 5), ("mapped", None)):
    descriptor = os.open(f"{FOLDER}/{name}.bin", os.O_RDONLY)
    mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    if page is not None:
        mapping[page * mmap.PAGESIZE]
    kept.append(mapping)
with open(f"{FOLDER}/whole-too.bin", "rb") as file:
    file.read()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.sigwait({signal.SIGTERM})
