"""Start the detector: ``python -m services.detector --config FILE``."""

from services.common.service import run
from services.detector.config import DetectorConfiguration
from services.detector.service import main

raise SystemExit(run("detector", DetectorConfiguration, main))
