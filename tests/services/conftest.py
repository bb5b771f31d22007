"""Fixtures of the services' tests: logging as it is before a service sets it up, and one RabbitMQ server for all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.certificates import make_authority, make_certificate
from tests.rabbitmq import RabbitMq


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Restore the logging after a service or command that ran in this process, so that other tests do not see it."""
    before = logging.root.handlers.copy()
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    for handler in logging.root.handlers.copy():
        if handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make certificates of a server and a client from one authority, and a certificate from another authority."""
    folder = tmp_path_factory.mktemp("tls")
    for authority in ("ours", "others"):
        make_authority(folder, authority)
    make_certificate(folder, "server", "ours")
    make_certificate(folder, "client", "ours")
    make_certificate(folder, "stranger", "others")
    return folder


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory, tls: Path) -> Iterator[RabbitMq]:
    """Run a broker that also accepts TLS with certificates of clients. It takes seconds to start."""
    settings = (
        f"listeners.ssl.1 = 127.0.0.1:{{tls_port}}\nssl_options.cacertfile = {tls}/ours.pem\n"
        f"ssl_options.certfile = {tls}/server.pem\nssl_options.keyfile = {tls}/server.key\n"
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    )
    with RabbitMq(tmp_path_factory.mktemp("rabbitmq"), settings=settings) as server:
        yield server
