"""``python -m services.stitcher --config FILE``: the same as ``framebus-stitcher``."""

from services.stitcher.entry import SERVICE

if __name__ == "__main__":
    raise SystemExit(SERVICE.main())
