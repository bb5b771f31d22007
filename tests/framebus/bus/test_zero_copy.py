"""The proof that a frame is handed over without a copy: by addresses, by counting allocations, by page faults."""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from framebus import FrameFormat, Publisher, ReceiveTimeout, Subscriber, companion_path
from framebus.bus.options import Wake
from tests.support import ROOT, faults_of_reading

PANORAMA = FrameFormat(688, 4896)
SUBSCRIBER = """
import resource, sys, tracemalloc
from framebus import Subscriber

def mapping(stream):
    for line in open("/proc/self/maps"):
        if f"framebus.{stream}.ring" in line:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            return begin, end, line.split()[1]

stream, wake, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Subscriber(stream, mode="every", wake=wake) as subscriber:
    print("ready", flush=True)
    subscriber.receive(20).release()
    print("next", flush=True)
    begin, end, access = mapping(stream)
    inside = total = 0
    tracemalloc.start()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        with subscriber.receive(20) as frame:
            address = frame.pixels.ctypes.data
            inside += begin <= address and address + frame.pixels.nbytes <= end
            total += int(frame.pixels[0, 0, 0]) + int(frame.pixels[-1, -1, -1])
        print("next", flush=True)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(inside, total, access, tracemalloc.get_traced_memory()[1], faults, flush=True)
"""


def ring_mapping(stream: str) -> tuple[int, int]:
    with open("/proc/self/maps") as maps:
        (line,) = (line for line in maps if f"framebus.{stream}.ring" in line)
    begin, end = line.split()[0].split("-")
    return int(begin, 16), int(end, 16)


@pytest.mark.parametrize("wake", ["zmq", "futex", "predict", "busy"])
def test_two_processes_share_the_pixels_and_allocate_none(stream: str, wake: str) -> None:
    count = 50
    with Publisher(stream, PANORAMA, slots=4) as publisher:
        begin, end = ring_mapping(stream)
        with subprocess.Popen(
            [sys.executable, "-c", SUBSCRIBER, stream, wake, str(count)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            with publisher.loan() as loan:
                loan.pixels[:] = 1
            assert reader.stdout.readline() == "next\n"
            tracemalloc.start()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(count):
                with publisher.loan() as loan:
                    address = loan.pixels.ctypes.data
                    assert begin <= address
                    assert address + PANORAMA.frame_bytes <= end
                    loan.pixels[0, 0, 0] = loan.pixels[-1, -1, -1] = 1
                assert reader.stdout.readline() == "next\n"
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            line = reader.stdout.readline()
    inside, total, access, reader_peak, reader_faults = line.split()
    assert int(inside) == count
    assert int(total) == 2 * count
    assert access == "r--s"
    # numpy reports its buffers to tracemalloc; a copy of one frame would be 10.1 MB and 2468 faults on fresh pages.
    assert max(peak, int(reader_peak)) < PANORAMA.frame_bytes // 50
    assert max(faults, int(reader_faults)) < count * PANORAMA.frame_bytes // 4096 // 10


@pytest.mark.parametrize("wake", ["zmq", "futex", "predict", "busy"])
@pytest.mark.parametrize("waits", [True, False], ids=["which waits between", "which finds one after the other"])
def test_a_reader_meets_no_page_fault_on_the_first_lap(stream: str, wake: Wake, waits: bool) -> None:
    slots, read = 4, 0
    with (
        Publisher(stream, PANORAMA, slots=slots) as publisher,
        Subscriber(stream, mode="every", wake=wake) as subscriber,
    ):
        for _ in range(slots):
            if waits:
                with pytest.raises(ReceiveTimeout):
                    subscriber.receive(0)
                assert not subscriber._attachment._ring.unmapped_slots
            publisher.loan().publish()
            with subscriber.receive(5) as frame:
                read += faults_of_reading(frame.pixels.reshape(-1))
    assert read < slots * PANORAMA.frame_bytes // mmap.PAGESIZE // 100


def test_publisher_and_subscriber_see_the_same_bytes_at_once(stream: str) -> None:
    content = bytes(range(1, 4 * 7 * 3 + 1))
    with Publisher(stream, FrameFormat(4, 7)) as publisher, Subscriber(stream) as subscriber:
        with publisher.loan() as loan:
            loan.pixels.reshape(-1)[:] = np.frombuffer(content, np.uint8)
        frame = subscriber.receive(5)
        with companion_path(stream, "ring").open("r+b") as file, mmap.mmap(file.fileno(), 0) as ring:
            assert ring.find(content) == ring.rfind(content) != -1
            ring[ring.find(content)] = 99
            assert frame.pixels[0, 0, 0] == 99
