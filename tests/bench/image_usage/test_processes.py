"""Which processes are the service, and which start it or check it."""

from __future__ import annotations

import pytest

from bench.image_usage.processes import (
    Life,
    Lookup,
    Processes,
    Role,
    check_command,
    is_loader,
    roles,
    service_start,
)

PARENTS = {100: 50, 50: 1, 101: 100, 102: 101, 200: 50, 201: 200}
"""100 is process 1 of the container; 200 comes from outside of it."""


@pytest.fixture
def processes() -> Processes:
    lines = {100: ("python", "-m", "server"), 200: ("python", "check.py"), 201: ("cat",)}
    return Processes(
        Lookup(lambda _: "/usr/bin/python3", lambda one: lines.get(one, ()), lambda one: PARENTS.get(one, 0))
    )


def life(number: int, program: str, began: int, *arguments: str) -> Life:
    above = []
    one = PARENTS.get(number, 0)
    while one > 1:
        above.append(one)
        one = PARENTS.get(one, 0)
    return Life(number, tuple(above), [program], began, arguments=arguments)


def test_a_script_and_its_interpreter_are_one_program(processes: Processes) -> None:
    for program in ("/run.sh", "/usr/bin/dash", "/usr/lib/ld-linux-x86-64.so.2"):
        processes.executes(100, program, 1)
        processes.executes(100, program, 2)  # the permission event, and then the notification
    assert processes.opens(100, 3) == 0
    assert [one.programs for one in processes.lives] == [["/run.sh", "/usr/bin/dash"]]
    assert processes.lives[0].name == "dash"
    assert processes.lives[0].ancestors == (50,)


def test_a_process_that_executes_another_program_starts_a_new_life(processes: Processes) -> None:
    processes.executes(100, "/bin/sh", 1)
    assert processes.opens(100, 2) == 0
    processes.executes(100, "/usr/bin/python3", 3)
    assert not processes.lives[1].arguments
    assert processes.of(100, 4) == 1
    assert not processes.lives[1].arguments  # the kernel reads the new program, and has not replaced the old one yet
    assert processes.opens(100, 5) == 1
    assert processes.lives[1].arguments == ("python", "-m", "server")


def test_a_child_that_executes_no_program_is_identified_by_its_executable(processes: Processes) -> None:
    assert processes.opens(102, 1) == 0
    assert processes.lives[0].programs == ["/usr/bin/python3"]
    assert processes.lives[0].ancestors == (101, 100, 50)


def test_the_service_begins_where_a_shell_executes_its_program() -> None:
    lives = [
        life(100, "/bin/dash", 1),
        life(101, "/bin/mkdir", 2),
        life(100, "/usr/bin/python3", 3),
        life(101, "/bin/sh", 4),
    ]
    start = service_start(lives, {100}, {100})
    assert start is lives[2]
    assert roles(lives, {100}, start, ()) == [Role.START, Role.START, Role.SERVICE, Role.START]


def test_below_an_init_the_service_is_the_process_that_remains() -> None:
    lives = [life(100, "/sbin/tini", 1), life(102, "/bin/mkdir", 2), life(101, "/usr/sbin/nginx", 3)]
    assert service_start(lives, {100}, {100, 101}) is lives[2]
    assert service_start(lives, {100}, {100}) is lives[1]
    assert service_start(lives, {999}, {999}) is None


def test_a_health_check_is_distinguished_from_other_commands() -> None:
    check = ("python", "check.py")
    lives = [
        life(100, "/server", 1),
        life(200, "/python", 2, *check),
        life(201, "/bin/cat", 3, "cat"),
        life(101, "/x", 4),
    ]
    assert roles(lives, {100}, lives[0], check) == [Role.SERVICE, Role.CHECK, Role.CHECK, Role.SERVICE]
    assert roles(lives, {100}, lives[0], ()) == [Role.SERVICE, Role.COMMAND, Role.COMMAND, Role.SERVICE]


def test_the_engine_is_not_the_service(processes: Processes) -> None:
    processes.opens(100, 1)  # as the engine's own program, before it executes the image's
    processes.executes(100, "/usr/sbin/server", 2)
    processes.opens(100, 3)
    processes.opens(200, 4)
    start = service_start(processes.lives, {100}, {100})
    assert start is processes.lives[1]
    assert roles(processes.lives, {100}, start, ()) == [Role.START, Role.SERVICE, Role.START]


def test_the_command_line_of_a_health_check_is_read_from_each_form() -> None:
    assert check_command(["CMD", "python", "x"]) == ("python", "x")
    assert check_command(["CMD-SHELL", "curl x"]) == ("/bin/sh", "-c", "curl x")
    assert check_command(["CMD-SHELL", "curl x"], ["/bin/bash", "-ec"]) == ("/bin/bash", "-ec", "curl x")
    assert check_command(["NONE"]) == check_command(None) == ()


def test_the_dynamic_loader_is_not_a_program() -> None:
    assert is_loader("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    assert is_loader("/lib/ld-musl-x86_64.so.1")
    assert not is_loader("/usr/bin/ldd")
