"""``python -m services.supervisor --config FILE``: the whole pipeline as processes of one machine or container."""

from services.common.service import run
from services.supervisor.config import SupervisorConfiguration
from services.supervisor.service import supervise

raise SystemExit(run("supervisor", SupervisorConfiguration, supervise))
