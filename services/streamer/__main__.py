"""``python -m services.streamer --config FILE``: the same as ``framebus-streamer``."""

from services.streamer.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
