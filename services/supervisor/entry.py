"""The supervisor as a service: what its entry point names."""

from __future__ import annotations

from services.common.service import Service
from services.supervisor.config import SupervisorConfiguration
from services.supervisor.service import supervise

SERVICE = Service("supervisor", SupervisorConfiguration, supervise, reads_all=True)
