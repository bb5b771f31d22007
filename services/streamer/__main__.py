"""Run with ``python -m services.streamer --config FILE``."""

from services.common.service import run
from services.streamer.config import StreamerConfiguration
from services.streamer.service import main

raise SystemExit(run("streamer", StreamerConfiguration, main))
