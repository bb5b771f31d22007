"""The relay as a service: what its entry point names."""

from __future__ import annotations

import gc
import threading

from services.common.service import Service
from services.relay.config import RelayConfiguration


def run(configuration: RelayConfiguration, stop: threading.Event) -> None:
    """Relay until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without the clients of broker and storage.
    from services.relay.service import main  # noqa: PLC0415

    # Exempt the objects that the imports have created from garbage collection: they stay until the end, and each full
    # collection would visit all of them.
    gc.freeze()
    main(configuration, stop)


def check(configuration: RelayConfiguration) -> None:
    """Check that the broker and the storage are configured, and that their settings are usable."""
    from services.relay.service import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


def dead_letters(arguments: list[str]) -> int:
    """List the frames that no detector could process; replay, drop or run them."""
    from services.relay.dead_letters import main  # noqa: PLC0415  as above

    return main(arguments)


def results(arguments: list[str]) -> int:
    """Print the results of all detectors as they arrive, each once, as JSON."""
    from services.relay.print_results import main  # noqa: PLC0415  as above

    return main(arguments)


SERVICE = Service(
    "relay", RelayConfiguration, run, check=check, commands={"dead-letters": dead_letters, "results": results}
)
