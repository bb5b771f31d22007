"""Sections of the configuration for several hosts: the message broker and the shared storage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from services.common.config import CommonConfiguration, Section
from services.common.credentials import check_credentials, read_password

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def check_broker_url(url: str) -> str:
    """Validate and return the URL.

    Raises:
        ValueError: The URL does not name a broker.
    """
    check_credentials(url)
    parts = urlsplit(url)
    try:
        _ = parts.port  # the property raises for a port that is not a number in range
    except ValueError:
        raise ValueError("the broker's URL has a malformed port") from None
    bare = parts.query or parts.fragment or re.search(r"\s", url)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname or bare:
        raise ValueError("write amqp://HOST[:PORT][/VHOST], or amqps:// with TLS")
    if "/" in parts.path.removeprefix("/"):
        raise ValueError("write a '/' in the name of the virtual host as %2F")
    return url


def _only_one(file: Path | None, variable: str | None, file_name: str, variable_name: str) -> None:
    if file is not None and variable is not None:
        raise ValueError(f"give {file_name} or {variable_name}, not both")


class BrokerSection(Section):
    """The RabbitMQ server that carries references to frames and results."""

    # repr=False keeps a password in the URL, and the user, out of logs and messages.
    url: str | None = Field(None, repr=False)
    """``amqp://HOST[:PORT][/VHOST]``, or ``amqps://`` with TLS. A ``/`` in the name of the virtual host is written as
    %2F. The default virtual host is ``/``. None: no broker."""
    username: str | None = Field(None, min_length=1, repr=False)
    """User, if the URL names none. If neither names one, RabbitMQ's ``guest``."""
    password_file: Path | None = None
    """File whose first line is the password. It is read at each connection."""
    password_env: str | None = Field(None, pattern=_VARIABLE)
    """Environment variable that holds the password."""
    ca_file: Path | None = None
    """Trusted CA certificates, as PEM; None: those of the system."""
    certificate_file: Path | None = None
    """Client certificate, as PEM, by which this service authenticates itself if the server requires it."""
    key_file: Path | None = None
    """Private key of the client certificate, as PEM."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        return None if url is None else check_broker_url(url)

    @model_validator(mode="after")
    def _check_log_in(self) -> Self:
        _only_one(self.password_file, self.password_env, "password_file", "password_env")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together: give both, or neither")
        parts = urlsplit(self.url or "")
        if parts.password is not None and (self.password_file is not None or self.password_env is not None):
            raise ValueError("the password is given twice: in the URL and beside it")
        if parts.username is not None and self.username is not None:
            raise ValueError("the user is named twice: in the URL and as username")
        return self

    def password(self) -> str | None:
        """Read the password. Return None if neither a file nor a variable is configured.

        Raises:
            MissingPassword: The password cannot be read.
        """
        return read_password(self.password_file, self.password_env)


class StorageSection(Section):
    """The storage for frames and results: a folder on a volume that all hosts mount, or a bucket of an S3 server."""

    url: str | None = None
    """``file:///FOLDER`` or ``s3://BUCKET[/PREFIX]``. None: no storage."""
    endpoint: str | None = Field(None, pattern=r"^https?://[^/@\s]+/?$")
    """Address of the S3 server, such as ``http://minio:9000``; None: Amazon's of the region."""
    region: str = Field("us-east-1", min_length=1)
    """Region of the bucket. Most self-hosted servers accept any."""
    access_key_id: str | None = Field(None, min_length=1, repr=False)
    """Name of the key. None: the AWS credentials of the environment, or the machine's role."""
    secret_key_file: Path | None = None
    """File whose first line is the secret of the key."""
    secret_key_env: str | None = Field(None, pattern=_VARIABLE)
    """Environment variable that holds the secret of the key."""
    ca_file: Path | None = None
    """Trusted CA certificates, as PEM; None: those of the system."""
    timeout_s: float = Field(10.0, gt=0, le=300)
    """Time-out of one request, after which it is retried."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        check_credentials(url)
        parts = urlsplit(url)
        if not parts.query and not parts.fragment:
            if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
                return url
            if parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc:
                return url
        raise ValueError("write file:///FOLDER or s3://BUCKET[/PREFIX]; keys go into access_key_id and secret_key_file")

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        _only_one(self.secret_key_file, self.secret_key_env, "secret_key_file", "secret_key_env")
        secret = self.secret_key_file is not None or self.secret_key_env is not None
        if secret != (self.access_key_id is not None):
            raise ValueError("access_key_id and its secret go together: give both, or neither")
        return self

    def secret_key(self) -> str | None:
        """Read the secret of the key. Return None if neither a file nor a variable is configured.

        Raises:
            MissingPassword: The secret cannot be read.
        """
        return read_password(self.secret_key_file, self.secret_key_env)


class RemoteConfiguration(CommonConfiguration):
    """Sections of the services that work across hosts."""

    broker: BrokerSection = BrokerSection()
    storage: StorageSection = StorageSection()
