"""``python -m services NAME --config FILE``: any installed service, also one of another distribution."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.common.config import ConfigurationError
from services.common.service import EXIT_USAGE, find_service


def main(arguments: Sequence[str]) -> int:
    """Run the service that the first argument names, with the others; return the exit status."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m services NAME [--config FILE] [--check]\n")
        return EXIT_USAGE
    name, *others = arguments
    try:
        service = find_service(name)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    return service.main(others)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
