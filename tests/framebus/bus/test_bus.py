"""Publisher and Subscriber, as a program uses them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from framebus import (
    Closed,
    Frame,
    FrameFormat,
    FrameReleased,
    FrameTooLarge,
    InvalidMetadata,
    InvalidName,
    LayoutMismatch,
    Loan,
    LoanOutstanding,
    NoFreeSlot,
    NotEnoughSharedMemory,
    PermissionDenied,
    Publisher,
    ReceiveTimeout,
    StreamExists,
    StreamGone,
    StreamNotFound,
    Subscriber,
    SubscriberLimitReached,
    TooManyLeases,
    WrongThread,
)
from framebus.bus.options import Wake
from framebus.inspect.streams import inspect
from framebus.ring.layout import LOCK_SLOTS
from framebus.shm import locks
from framebus.shm import segment as shm
from tests.support import SHM, Program, files_of, publish

SMALL = FrameFormat(4, 6)
WAKES = pytest.mark.parametrize("wake", ["zmq", "futex", "predict", "busy"])
Start = Callable[..., Program]


class TestFrames:
    @WAKES
    def test_a_frame_arrives_whole_and_describes_itself(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake) as subscriber:
            with publisher.loan() as loan:
                loan.pixels[:] = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
                loan.captured_ns, loan.captured_wall_ns = 123, 456
                loan.metadata = {"cameras": ["a", "b"], "exposure": 1.5}
            frame = subscriber.receive(timeout_s=5)
            assert (frame.pixels.ravel() == np.arange(72)).all()
            assert (frame.pixels.shape, frame.pixels.dtype.name, frame.pixel_format) == ((4, 6, 3), "uint8", "bgr")
            assert (frame.sequence, frame.epoch, frame.skipped) == (1, publisher.statistics.epoch, 0)
            assert (frame.captured_ns, frame.captured_wall_ns) == (123, 456)
            assert frame.published_ns <= time.monotonic_ns()
            assert frame.metadata == {"cameras": ["a", "b"], "exposure": 1.5}

    @pytest.mark.usefixtures("each_steps")
    @pytest.mark.parametrize(("when", "error"), [(1 << 63, OverflowError), (-1 << 64, OverflowError), (1.5, TypeError)])
    @pytest.mark.parametrize("name", ["captured_ns", "captured_wall_ns"])
    def test_a_time_that_no_header_can_hold_abandons_the_slot(
        self, stream: str, name: str, when: int, error: type[Exception]
    ) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            with pytest.raises(error), publisher.loan() as loan:
                setattr(loan, name, when)
            assert (publisher.statistics.published, publisher.statistics.abandoned) == (0, 1)
            with publisher.loan() as loan:
                loan.captured_ns, loan.captured_wall_ns = np.int64(-1), (1 << 63) - 1  # type: ignore[assignment]
            frame = subscriber.receive(5)
            assert (frame.sequence, frame.captured_ns, frame.captured_wall_ns) == (1, -1, (1 << 63) - 1)

    def test_the_shape_may_change_within_the_slot(self, stream: str) -> None:
        with Publisher(stream, FrameFormat(10, 10)) as publisher, Subscriber(stream) as subscriber:
            for wanted in (FrameFormat(5, 7, 1, "float32", "depth"), FrameFormat(2, 3, 4, "uint16", "rgba")):
                with publisher.loan(wanted) as loan:
                    loan.pixels[:] = 3
                frame = subscriber.receive(5)
                assert frame.pixels.shape == wanted.shape
                assert frame.pixels.dtype == wanted.dtype
                assert frame.pixel_format == wanted.pixel_format
                assert (frame.pixels == 3).all()
            with pytest.raises(FrameTooLarge, match="largest format"):
                publisher.loan(FrameFormat(1000, 1000))

    def test_a_readers_pixels_are_read_only(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            publish(publisher)
            pixels = subscriber.receive(5).pixels
            assert pixels.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                pixels[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                pixels.flags.writeable = True

    @pytest.mark.parametrize(
        "arguments",
        [(0, 1), (1, 1, -1), (1, 1, 3, "complex64"), (1, 1, 3, "nonsense"), (1, 1, 3, "uint8", "x" * 17)],
    )
    def test_an_impossible_format_is_rejected(self, arguments: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"frame|pixel format|channels"):
            FrameFormat(*arguments)


class TestPublisher:
    def test_an_exception_abandons_the_loan(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            with pytest.raises(ZeroDivisionError), publisher.loan() as loan:
                loan.pixels[:] = 1 // 0
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0)
            assert publish(publisher) == 1
            assert publisher.statistics.abandoned == 1

    def test_a_loan_is_over_when_it_is_published(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            with publisher.loan() as loan:
                kept = loan.pixels
            with pytest.raises(FrameReleased):
                loan.pixels  # noqa: B018
            with pytest.raises(ValueError, match="read-only"):
                kept[:] = 1
            with pytest.raises(FrameReleased):
                loan.publish()
            loan.abandon()
            assert publisher.statistics.published == 1

    def test_one_loan_at_a_time(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            loan = publisher.loan()
            with pytest.raises(LoanOutstanding):
                publisher.loan()
            loan.abandon()
            publish(publisher)

    @pytest.mark.parametrize("metadata", [{"x": "y" * 900}, {"x": object()}, {"x": 1 << 70}])
    def test_metadata_that_does_not_fit_abandons_the_frame(self, stream: str, metadata: dict[str, object]) -> None:
        with Publisher(stream, SMALL) as publisher:
            with pytest.raises(InvalidMetadata, match="metadata"), publisher.loan() as loan:
                loan.metadata = metadata
            assert publisher.statistics.abandoned == 1
            assert publish(publisher) == 1

    def test_a_second_publisher_is_refused_and_harms_nothing(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            with pytest.raises(StreamExists, match=stream):
                Publisher(stream, SMALL)
            with Subscriber(stream) as subscriber:
                publish(publisher)
                assert subscriber.receive(5).sequence == 1

    @pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 60])
    def test_an_invalid_name_is_rejected(self, name: str) -> None:
        with pytest.raises(InvalidName):
            Publisher(name, SMALL)
        with pytest.raises(InvalidName):
            Subscriber(name)

    def test_a_ring_larger_than_the_free_space_leaves_nothing(self, stream: str) -> None:
        with pytest.raises(NotEnoughSharedMemory, match=r"MiB free, this ring needs \d+ MiB: set shm_size: \d+m"):
            Publisher(stream, FrameFormat(40_000, 50_000), slots=85)
        assert files_of(stream) == []

    @pytest.mark.root
    def test_a_name_that_another_user_took_first_is_an_error(self, stream: str) -> None:
        for suffix in ("lock", "ring"):
            path = SHM / f"framebus.{stream}.{suffix}"
            path.write_bytes(b"taken")
            os.chown(path, 12345, 12345)
            with pytest.raises(PermissionDenied, match="user 12345"):
                Publisher(stream, SMALL)
            assert path.read_bytes() == b"taken"
            path.unlink()

    def test_a_kept_ring_is_adopted(self, stream: str) -> None:
        with Publisher(stream, SMALL, keep_ring=True) as publisher:
            publish(publisher)
            first = publisher.statistics.epoch
        with Publisher(stream, SMALL) as publisher:
            assert publisher.statistics.adopted
            assert publisher.statistics.epoch != first
            assert publish(publisher) == 2

    @WAKES
    def test_pinned_slots_drop_frames_and_then_replace_the_ring(
        self, stream: str, wake: Wake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("framebus.bus.served_stream.REPLACE_AFTER_S", 0.0)
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream, wake=wake) as subscriber:
            publish(publisher)
            subscriber.receive(5).release()
            neighbour = shm.attach(f"framebus.{stream}.ring")
            for slot in range(4):
                assert neighbour.try_lock(locks.read_lock(LOCK_SLOTS + slot))
            with pytest.raises(NoFreeSlot, match="drop this frame"):
                publisher.loan()
            assert publish(publisher) == 2
            assert (publisher.statistics.dropped, publisher.statistics.replaced) == (1, 1)
            assert subscriber.receive(5).sequence == 2
            assert subscriber.statistics.reattached == 1

    @pytest.mark.parametrize("end", [Loan.publish, Loan.abandon])
    def test_a_loan_stays_its_owners_when_another_thread_wants_to_end_it(
        self, stream: str, end: Callable[[Loan], object]
    ) -> None:
        refused = []

        def use(loan: Loan) -> None:
            try:
                end(loan)
            except WrongThread as error:
                refused.append(error)

        with Publisher(stream, SMALL) as publisher:
            loan = publisher.loan()
            thread = threading.Thread(target=use, args=(loan,))
            thread.start()
            thread.join()
            assert refused
            loan.pixels[:] = 7
            end(loan)
            assert publish(publisher) == (2 if end is Loan.publish else 1)

    def test_a_publisher_belongs_to_one_thread(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            publish(publisher)
            caught: list[BaseException] = []

            def use() -> None:
                try:
                    publisher.loan()
                except WrongThread as error:
                    caught.append(error)

            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            assert caught

    def test_a_closed_publisher_rejects_every_call(self, stream: str) -> None:
        publisher = Publisher(stream, SMALL)
        loan = publisher.loan()
        publisher.close()
        publisher.close()
        with pytest.raises(Closed):
            publisher.loan()
        with pytest.raises(Closed):
            loan.publish()
        with pytest.raises(FrameReleased):
            loan.pixels  # noqa: B018


class TestSubscriber:
    def test_a_missing_stream_is_an_error(self, stream: str) -> None:
        with pytest.raises(StreamNotFound, match=stream):
            Subscriber(stream, attach_timeout_s=0)
        with pytest.raises(StreamNotFound):
            Subscriber(stream, attach_timeout_s=0.1)

    def test_a_subscriber_can_wait_for_the_stream(self, stream: str, start_program: Start) -> None:
        program = start_program("publish", stream, "4", "6", "8")
        program.send("publish 3")
        with Subscriber(stream, attach_timeout_s=20) as subscriber:
            assert subscriber.receive(20).pixels.shape == (4, 6, 3)
        assert program.end() == 0

    def test_the_descriptor_signals_a_frame_while_all_leases_are_held(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, max_leases=1) as subscriber:
            publish(publisher)
            with subscriber.receive(5):
                assert subscriber.fileno() >= 0

    @WAKES
    def test_a_late_joiner_sees_the_newest_frame_at_once(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher:
            for _ in range(5):
                publish(publisher)
            with Subscriber(stream, wake=wake) as subscriber:
                frame = subscriber.receive(0)
                assert (frame.sequence, frame.skipped) == (5, 0)

    def test_newest_skips_and_counts(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            publish(publisher)
            subscriber.receive(5).release()
            for _ in range(4):
                publish(publisher)
            frame = subscriber.receive(5)
            assert (frame.sequence, frame.skipped) == (5, 3)
            assert subscriber.statistics.skipped == 3

    @WAKES
    def test_every_takes_all_that_the_ring_still_has(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream, mode="every", wake=wake) as subscriber:
            publish(publisher)
            subscriber.receive(5).release()
            for _ in range(9):
                publish(publisher)
            seen = []
            for _ in range(4):
                with subscriber.receive(5) as frame:
                    seen.append((frame.sequence, frame.skipped))
            assert seen == [(7, 5), (8, 0), (9, 0), (10, 0)]

    def test_a_view_keeps_the_lease(self, stream: str) -> None:
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream) as subscriber:
            publish(publisher, 7)
            frame = subscriber.receive(5)
            corner = frame.pixels[1:3].reshape(-1)[5:]
            frame.release()
            with pytest.raises(FrameReleased):
                frame.pixels  # noqa: B018
            for value in range(20):
                publish(publisher, 100 + value)
            assert (corner == 7).all()
            assert subscriber.statistics.leases == 1
            del corner
            assert subscriber.statistics.leases == 0

    @WAKES
    def test_too_many_leases_say_what_to_do(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake) as subscriber:
            kept: list[Frame] = []
            for _ in range(2):
                publish(publisher)
                kept.append(subscriber.receive(5))
            publish(publisher)
            with pytest.raises(TooManyLeases, match=r"copy .* max_leases=3"):
                subscriber.receive(0)
            kept.pop().release()
            assert subscriber.receive(5).sequence == 3

    def test_a_subscriber_beyond_admission_is_refused(self, stream: str) -> None:
        with Publisher(stream, SMALL, slots=6) as publisher, Subscriber(stream), Subscriber(stream, max_leases=1):
            with pytest.raises(SubscriberLimitReached, match="1 are free and this one wants 2"):
                Subscriber(stream)
            with Subscriber(stream, max_leases=1) as last:
                publish(publisher)
                assert last.receive(5).sequence == 1

    def test_honest_subscribers_never_stop_the_publisher(self, stream: str) -> None:
        with Publisher(stream, SMALL, slots=6) as publisher:
            subscribers = [Subscriber(stream) for _ in range(2)]
            held = []
            for _ in range(2):
                for subscriber in subscribers:
                    publish(publisher)
                    held.append(subscriber.receive(5))
            for _ in range(50):
                publish(publisher)
            assert publisher.statistics.dropped == 0
            for subscriber in subscribers:
                subscriber.close()

    def test_iterating_releases_the_frame_before(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, max_leases=1) as subscriber:
            publish(publisher)
            for frame in subscriber:
                if frame.sequence == 10:
                    break
                publish(publisher)
            assert subscriber.statistics.received == 10

    def test_frames_outlive_the_subscriber(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            subscriber = Subscriber(stream)
            publish(publisher, 5)
            pixels = subscriber.receive(5).pixels
            subscriber.close()
            subscriber.close()
            with pytest.raises(Closed):
                subscriber.receive(0)
            for _ in range(20):
                publish(publisher, 6)
            assert (pixels == 5).all()
            assert subscriber.statistics.received == 1

    @WAKES
    def test_a_subscriber_belongs_to_one_thread_but_frames_are_released_in_any(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake) as subscriber:
            publish(publisher)
            frame = subscriber.receive(5)
            caught: list[BaseException] = []

            def use() -> None:
                frame.release()
                try:
                    subscriber.receive(0)
                except WrongThread as error:
                    caught.append(error)

            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            assert caught
            assert subscriber.statistics.leases == 0

    @WAKES
    def test_a_subscriber_can_receive_after_a_time_out(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake) as subscriber:
            for timeout_s in (0, 0.001, 0.12):
                with pytest.raises(ReceiveTimeout, match=stream):
                    subscriber.receive(timeout_s)
            publish(publisher)
            assert subscriber.receive(5).sequence == 1
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0.06)

    @WAKES
    def test_a_closed_stream_is_gone_after_the_time_given(self, stream: str, wake: Wake) -> None:
        publisher = Publisher(stream, SMALL)
        with Subscriber(stream, wake=wake, gone_after_s=0.1) as subscriber:
            publisher.close()
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0)
            with pytest.raises(StreamGone, match=r"is gone for 0\.1 s"):
                subscriber.receive(20)

    @WAKES
    def test_the_publishers_restart_is_a_new_epoch(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL) as publisher:
            subscriber = Subscriber(stream, wake=wake)
            publish(publisher)
            first = subscriber.receive(5)
        with Publisher(stream, FrameFormat(20, 20)) as publisher:
            publish(publisher)
            second = subscriber.receive(20)
            assert second.epoch == publisher.statistics.epoch != first.epoch
            assert second.pixels.shape == (20, 20, 3)
        subscriber.close()

    @WAKES
    def test_a_killed_publisher_is_survived(self, stream: str, wake: Wake, start_program: Start) -> None:
        program = start_program("publish", stream, "4", "6", "8")
        program.read()
        with Subscriber(stream, wake=wake) as subscriber:
            program.send("publish 3")
            assert program.read() == "3"
            before = subscriber.receive(10)
            program.send("loan")
            assert program.read() == "loaned"
            program.process.kill()
            program.process.wait()
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0.2)
            with Publisher(stream, SMALL) as publisher:
                assert publisher.statistics.adopted
                publish(publisher)
                after = subscriber.receive(20)
                assert (before.sequence, after.sequence, after.skipped) == (3, 4, 0)
                assert after.epoch != before.epoch

    def test_a_killed_subscriber_holds_nothing(self, stream: str) -> None:
        code = (
            "import sys; from framebus import Subscriber\n"
            f"s = Subscriber({stream!r}, max_leases=2); f = s.receive(10)\n"
            "print(f.sequence, flush=True); sys.stdin.read()"
        )
        with Publisher(stream, SMALL, slots=4) as publisher:
            publish(publisher)
            with subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as subscriber:
                assert subscriber.stdout is not None
                assert subscriber.stdout.readline() == b"1\n"
                with pytest.raises(SubscriberLimitReached):
                    Subscriber(stream)
                subscriber.kill()
                subscriber.wait()
            assert len([file for file in files_of(stream) if ".sub." in file]) == 1
            with Subscriber(stream):
                pass
            assert not [file for file in files_of(stream) if ".sub." in file]

    @pytest.mark.parametrize("damage", ["version", "magic", "truncated", "garbage"])
    def test_a_damaged_ring_is_a_typed_error(self, stream: str, damage: str) -> None:
        with Publisher(stream, SMALL, keep_ring=True) as publisher:
            publish(publisher)
        path = SHM / f"framebus.{stream}.ring"
        content = bytearray(path.read_bytes())
        if damage == "version":
            content[8] = 9
        elif damage == "magic":
            content[:8] = b"SOMEBODY"
        elif damage == "truncated":
            del content[5000:]
        else:
            content[:] = os.urandom(len(content))
        path.write_bytes(content)
        with pytest.raises(LayoutMismatch):
            Subscriber(stream, attach_timeout_s=0)
        with Publisher(stream, SMALL) as publisher:
            assert publish(publisher) >= 1

    @WAKES
    def test_a_signal_is_handled_while_waiting(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL), Subscriber(stream, wake=wake) as subscriber:
            before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                with pytest.raises(KeyboardInterrupt):
                    subscriber.receive(60)
            finally:
                signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize("arguments", [{"mode": "all"}, {"wake": "bell"}, {"max_leases": 0}])
    def test_impossible_arguments_are_rejected(self, stream: str, arguments: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="is"):
            Subscriber(stream, **arguments)  # type: ignore[arg-type]


class TestAsync:
    def test_async_for_receives_frames(self, stream: str) -> None:
        async def consume() -> list[int]:
            seen = []
            async for frame in subscriber:
                seen.append(frame.sequence)
                if len(seen) == 5:
                    break
                publish(publisher)
            return seen

        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            publish(publisher)
            assert asyncio.run(consume()) == [1, 2, 3, 4, 5]

    def test_a_cancelled_receive_loses_no_frame(self, stream: str) -> None:
        async def interrupt() -> int:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.15):
                    await subscriber.receive_async()
            publish(publisher)
            return (await subscriber.receive_async(5)).sequence

        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            assert asyncio.run(interrupt()) == 1

    def test_receive_async_times_out(self, stream: str) -> None:
        with Publisher(stream, SMALL), Subscriber(stream) as subscriber, pytest.raises(ReceiveTimeout):
            asyncio.run(subscriber.receive_async(0.1))

    @pytest.mark.parametrize("wake", ["futex", "predict", "busy"])
    def test_only_zmq_has_a_descriptor(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL), Subscriber(stream, wake=wake) as subscriber:
            with pytest.raises(ValueError, match="open it with wake='zmq'"):
                asyncio.run(subscriber.receive_async(0.1))
            with pytest.raises(ValueError, match="open it with wake='zmq'"):
                subscriber.fileno()


class TestFork:
    @WAKES
    def test_a_child_neither_holds_nor_frees_its_parents_leases(self, stream: str, wake: Wake) -> None:
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream, wake=wake) as subscriber:
            publish(publisher, 1)
            frame = subscriber.receive(5)
            pixels = frame.pixels
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    frame.release()
                    del pixels, frame
                    for use in (lambda: subscriber.receive(0), publisher.loan):
                        try:
                            use()
                        except Closed:
                            status = 0
                        else:
                            status = 1
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            for _ in range(10):
                publish(publisher, 2)
            assert (pixels == 1).all()

    @pytest.mark.usefixtures("each_steps")
    @pytest.mark.parametrize("metadata", [{}, {"by": "child"}])
    def test_a_child_does_not_publish_its_parents_loan(self, stream: str, metadata: dict[str, str]) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake="futex") as subscriber:
            loan = publisher.loan()
            loan.pixels[:] = 7
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    loan.metadata = metadata
                    loan.publish()
                except Closed:
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0)
            assert inspect(stream).sequence == 0, "nothing was published"
            loan.publish()
            frame = subscriber.receive(5)
            assert (frame.pixels == 7).all()
            assert frame.metadata == {}


def test_an_interpreter_that_exits_with_live_views_is_silent(stream: str) -> None:
    code = (
        "from framebus import *\n"
        f"p = Publisher({stream!r}, FrameFormat(4, 6)); s = Subscriber({stream!r})\n"
        "p.loan().publish()\n"
        "f = s.receive(5); v = f.pixels[1:]; import atexit; s.close(); p.close()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
