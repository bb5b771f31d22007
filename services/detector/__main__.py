"""``python -m services.detector --config FILE``: the same as ``framebus-detector``."""

from services.detector.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
