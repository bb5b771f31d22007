"""``python -m services.supervisor --config FILE``: the same as ``framebus-supervisor``."""

from services.supervisor.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
