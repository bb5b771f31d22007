"""``python -m services.relay --config FILE``: the same as ``framebus-relay``."""

from services.relay.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
