"""``python -m services.stitcher --config FILE``."""

from services.common.service import run
from services.stitcher.config import StitcherConfiguration
from services.stitcher.service import main

if __name__ == "__main__":
    raise SystemExit(run("stitcher", StitcherConfiguration, main))
