"""A ``with publisher.loan()`` that is left early publishes what was written, and nothing where nothing was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from framebus import Frame, Loan, Publisher, ReceiveTimeout, Subscriber
from tests.framebus.cases.support import SMALL
from tests.support import publish


def leave_by_break(publisher: Publisher, write: Callable[[Loan], object]) -> None:
    for _ in range(3):
        with publisher.loan() as loan:
            write(loan)
            break


def leave_by_continue(publisher: Publisher, write: Callable[[Loan], object]) -> None:
    for _ in range(1):
        with publisher.loan() as loan:
            write(loan)
            continue


def leave_by_return(publisher: Publisher, write: Callable[[Loan], object]) -> None:
    with publisher.loan() as loan:
        write(loan)
        return


def leave_a_generator(publisher: Publisher, write: Callable[[Loan], object]) -> None:
    def frames() -> Iterator[None]:
        with publisher.loan() as loan:
            write(loan)
            yield

    for _ in frames():
        pass


def leave_at_the_end(publisher: Publisher, write: Callable[[Loan], object]) -> None:
    with publisher.loan() as loan:
        write(loan)


LEAVE = pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_continue, leave_by_return, leave_a_generator, leave_at_the_end]
)


@LEAVE
@pytest.mark.usefixtures("each_steps")
def test_an_untouched_loan_is_not_published(stream: str, leave: Callable[..., None]) -> None:
    with Publisher(stream, SMALL, slots=3) as publisher, Subscriber(stream, mode="every", max_leases=1) as subscriber:
        for value in (1, 2, 3):
            publish(publisher, value)
            subscriber.receive(5).release()
        leave(publisher, lambda loan: None)
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0)
        assert (publisher.statistics.published, publisher.statistics.abandoned) == (3, 1)
        assert publish(publisher, 4) == 4
        assert (subscriber.receive(5).pixels == 4).all()


@LEAVE
@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("what", ["pixels", "metadata", "captured_ns"])
def test_a_touched_loan_is_published(stream: str, leave: Callable[..., None], what: str) -> None:
    def write(loan: Loan) -> None:
        if what == "pixels":
            loan.pixels[:] = 9
        else:
            setattr(loan, what, {"x": 1} if what == "metadata" else 5)

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        leave(publisher, write)
        frame = subscriber.receive(5)
        assert what != "pixels" or (frame.pixels == 9).all()
        assert publisher.statistics.published == 1


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, SystemExit])
@pytest.mark.parametrize("touch", [True, False])
def test_an_exception_publishes_nothing(stream: str, error: type[BaseException], touch: bool) -> None:
    def use() -> None:
        with publisher.loan() as loan:
            if touch:
                loan.pixels[:] = 1
            raise error

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        with pytest.raises(error):
            use()
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0)
        assert publisher.statistics.abandoned == 1


def test_a_generator_that_is_dropped_in_its_loan_publishes_nothing(stream: str) -> None:
    def frames() -> Iterator[None]:
        with publisher.loan() as loan:
            loan.pixels[:] = 1
            yield

    with Publisher(stream, SMALL) as publisher:
        for _ in frames():
            break
        assert (publisher.statistics.published, publisher.statistics.abandoned) == (0, 1)


@pytest.mark.usefixtures("each_steps")
def test_a_frame_is_released_however_its_block_is_left(stream: str) -> None:
    def receive(how: str) -> Frame:
        for _ in range(1):
            with subscriber.receive(5) as frame:
                frame.pixels  # noqa: B018  which keeps a view
                if how == "break":
                    break
                if how == "return":
                    return frame
                if how == "raise":
                    raise ZeroDivisionError
        return frame

    with Publisher(stream, SMALL) as publisher, Subscriber(stream, max_leases=1) as subscriber:
        for how in ("break", "return", "raise", "end"):
            publish(publisher)
            try:
                frame = receive(how)
            except ZeroDivisionError:
                assert how == "raise"
            assert subscriber.statistics.leases == 0
        assert "released" in repr(frame)
