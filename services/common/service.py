"""The skeleton of a service: declaration, command line, start and stop.

A service is a :class:`Service` that an entry point of the group ``framebus.services`` names. Any distribution may
declare one:

    [project.entry-points."framebus.services"]
    detector = "services.detector.entry:SERVICE"

The entry point's module is imported whenever the whole configuration is checked. Keep it small: import the service's
dependencies when the service runs.
"""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import structlog
from pydantic import create_model

from framebus import FramebusError, companion_path
from services.common.config import (
    CommonConfiguration,
    ConfigurationError,
    declared_services,
    in_one_line,
    load,
    origin_of,
)
from services.common.health import read_status
from services.common.logs import set_up_logs
from services.common.masking import mask_text
from services.common.parent import end_with_parent

C = TypeVar("C", bound=CommonConfiguration)

EXIT_USAGE = 2
"""Exit status for a fault of the configuration or environment that a restart does not fix."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C during a command or check, as shells report it."""
SUPERVISED = "FRAMEBUS_SUPERVISED"
"""Environment variable with the process id of the supervisor. A service that has it ends with that process."""


class ServiceError(Exception):
    """The service cannot continue; the message is one sentence for the operator."""


class UnusableSetting(ServiceError):
    """The configuration names something unusable, such as an unreadable model. A restart does not help."""


@dataclass(frozen=True, slots=True)
class Service(Generic[C]):
    """A service: its name, configuration, entry function, status and commands."""

    name: str
    """Name of the entry point, of the section in the file, and in the logs."""
    configuration: type[C]
    """Model of the shared sections and, in the field :attr:`name`, of the service's own."""
    run: Callable[[C, threading.Event], None]
    """Runs until the event is set, and serves a :class:`~services.common.status.StatusServer` meanwhile. Raises
    ServiceError or FramebusError to give up."""
    status_name: Callable[[C], str] | None = None
    """Returns the name under which the service serves its status. If it is ``None``, that is :attr:`name`."""
    awaited: bool = False
    """Whether the supervisor delays the next service until this one serves a status without ``progress``."""
    reads_all: bool = False
    """Whether the sections of all other services are validated as well."""
    check: Callable[[C], None] | None = None
    """Loads everything that :attr:`run` loads at its start, except from the network. Raises ServiceError,
    FramebusError or ImportError; a message with several faults has one line for each."""
    for_people: bool = False
    """Whether it logs short lines on a terminal, whatever ``log.format`` says, and logs its start and end only as
    JSON."""
    commands: Mapping[str, Callable[[list[str]], int]] = field(default_factory=dict, hash=False)
    """Additional commands, run as ``framebus-NAME COMMAND ARGUMENTS``. Each is called with the arguments after its name
    and returns the exit status. It may raise ServiceError, FramebusError or ImportError, which :meth:`main` prints as
    one line. The first line of its docstring is its help text."""

    def load(self, path: Path | None, environment: Mapping[str, str] = os.environ) -> C:
        """Read and validate the service's part of the configuration; the arguments are those of ``config.load``.

        Raises:
            ConfigurationError: The configuration has faults or, with :attr:`reads_all`, a service cannot be loaded.
        """
        return load(self.whole_configuration(), path, environment)

    def whole_configuration(self) -> type[C]:
        """Return :attr:`configuration`, extended by the sections of all services if :attr:`reads_all` is set.

        Raises:
            ConfigurationError: A service cannot be loaded.
        """
        return _with_all_sections(self.configuration) if self.reads_all else self.configuration

    def status(self, configuration: C) -> dict[str, Any] | None:
        """Return the status of the running service, or ``None`` if it does not answer within about a second."""
        name = self.name if self.status_name is None else self.status_name(configuration)
        try:
            return read_status(companion_path(configuration.stream.name, f"status.{name}.sock"))
        except (OSError, ValueError):
            return None

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the service until it ends or is told to stop.

        Args:
            arguments: Arguments of the command line; ``None`` for those of this process.

        Returns:
            Exit status: 0 if :attr:`run` returned, 1 if it raised an error, 2 if the configuration or something that it
            names is unusable. If the first argument is one of :attr:`commands`, the status of that command.
        """
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        if arguments and arguments[0] in self.commands:
            return self._run_command(arguments[0], arguments[1:])
        parser = argparse.ArgumentParser(
            prog=f"framebus-{self.name}",
            epilog=self._help_of_commands(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--config", type=Path, help="the YAML file of all services; without it, the defaults apply")
        parser.add_argument(
            "--check", action="store_true", help="check the configuration, load what it names, and exit"
        )
        options = parser.parse_args(arguments)
        try:
            configuration = self.load(options.config)
        except ConfigurationError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_USAGE
        if options.check:
            # The answer is plain text for the operator, whatever the configuration says of the log.
            set_up_logs(self.name, configuration.log.model_copy(update={"format": "text", "level": "warning"}))
            return self._check(configuration)
        short = self.for_people and (sys.stderr.isatty() or configuration.log.format == "text")
        set_up_logs(self.name, configuration.log.model_copy(update={"format": "text"} if short else {}))
        log = structlog.get_logger()
        stop = threading.Event()

        def request_stop(_signal: int, _frame: object) -> None:
            # Set the event in another thread: a signal handler runs in the main thread, which may be inside stop.wait()
            # and hold the event's lock, so that stop.set() would deadlock.
            _thread.start_new_thread(stop.set, ())

        signal.signal(signal.SIGTERM, request_stop)
        signal.signal(signal.SIGINT, request_stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) ignores it
            signal.signal(signal.SIGHUP, request_stop)
        # After the handlers are set: the signal may be sent at once.
        if SUPERVISED in os.environ:
            end_with_parent(signal.SIGTERM, int(os.environ[SUPERVISED]))
        if not short:  # on a terminal, the service reports its start and end in its own words
            log.info("started")
        try:
            self.run(configuration, stop)
        except (ServiceError, FramebusError) as error:
            log.error("failed", reason=str(error))  # noqa: TRY400  one sentence, no traceback
            return EXIT_USAGE if isinstance(error, UnusableSetting) else 1
        if not short:
            log.info("stopped")
        return 0

    def _help_of_commands(self) -> str:
        """Return a line for each of :attr:`commands`."""
        lines = [
            f"  {name}  {(command.__doc__ or '').strip().partition(chr(10))[0]}"
            for name, command in self.commands.items()
        ]
        return "\n".join(["commands, each with a --help of its own:", *lines]) if lines else ""

    def _run_command(self, name: str, arguments: list[str]) -> int:
        """Run one of :attr:`commands`, print its error if it raises one, and return the exit status."""
        try:
            return self.commands[name](arguments)
        except ConfigurationError as error:
            sys.stderr.write(f"{error}\n")  # as without a command: one line for each fault
            return EXIT_USAGE
        except (ServiceError, FramebusError) as error:
            fault, status = str(error), EXIT_USAGE if isinstance(error, UnusableSetting) else 1
        except ImportError as error:
            fault, status = self._missing(error), EXIT_USAGE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        sys.stderr.write(f"framebus-{self.name} {name}: {mask_text(in_one_line(fault))}\n")
        return status

    def _missing(self, error: ImportError) -> str:
        return f"what it needs is not installed: {error}; pip install 'framebus-services[{self.name}]'"

    def _check(self, configuration: C) -> int:
        """Run :attr:`check`, print its faults, and return the exit status."""
        try:
            if self.check is not None:
                self.check(configuration)
        except (ServiceError, FramebusError) as error:
            faults = str(error).splitlines()
        except ImportError as error:
            faults = [self._missing(error)]
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        else:
            return 0
        # The faults of a service that reads all sections name their own services.
        prefix = "" if self.reads_all else f"{self.name}: "
        sys.stderr.write("".join(f"{prefix}{mask_text(in_one_line(fault))}\n" for fault in faults))
        return EXIT_USAGE


def find_service(name: str) -> Service[Any]:
    """Import an installed service.

    Raises:
        ConfigurationError: No distribution declares the service, its module cannot be imported, or the entry point is
            not a :class:`Service` of that name.
    """
    declared = declared_services()
    if name not in declared:
        raise ConfigurationError(in_one_line(f"no service {name!r} is installed; there are {', '.join(declared)}"))
    entry = declared[name]
    try:
        service = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  the module of another party may raise anything
        reason = f"{type(error).__name__}: {error}"
    else:
        if not isinstance(service, Service):
            reason = f"it is not a Service, but of type {type(service).__name__}"
        elif service.name != name:
            reason = f"it is named {service.name!r}"
        elif name not in service.configuration.model_fields:
            reason = f"its {service.configuration.__name__} has no section {name!r}"
        else:
            return service
    raise ConfigurationError(in_one_line(f"{origin_of(entry)} cannot be loaded: {reason}"))


def _with_all_sections(base: type[C]) -> type[C]:
    """Extend a configuration by the missing sections of all installed services."""
    fields: dict[str, Any] = {}
    faults = []
    for name in declared_services():
        if name in base.model_fields:
            continue
        try:
            field = find_service(name).configuration.model_fields[name]
        except ConfigurationError as error:
            faults.append(str(error))
        else:
            fields[name] = (field.annotation, field)
    if faults:
        raise ConfigurationError("\n".join(faults))
    return cast("type[C]", create_model(base.__name__, __base__=base, **fields))
