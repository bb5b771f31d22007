"""``python -m services.simulator --config FILE``."""

import sys

from services.common.service import run
from services.simulator.config import SimulatorConfiguration
from services.simulator.service import main

if __name__ == "__main__":
    sys.exit(run("simulator", SimulatorConfiguration, main))
