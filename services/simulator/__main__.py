"""``python -m services.simulator --config FILE``: the same as ``framebus-simulator``."""

from services.simulator.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
