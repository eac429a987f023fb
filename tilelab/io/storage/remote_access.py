"""How a store is reached: endpoint, region and credentials from the usual places, without ever waiting for them long.

    s3://    AWS_ACCESS_KEY_ID ..., the profile AWS_PROFILE of ~/.aws, a role (web identity, container, EC2)
             AWS_REGION, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3)
    gs://    GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, the machine's service account
    https:// user and password, or a signed query, in the address

Where none of these is found, requests are not signed: public data need no account.
"""

from __future__ import annotations

import configparser
import datetime
import os
import socket
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

TIMEOUT_SECONDS = 60.0
TRIES = 7
_CONNECT_SECONDS = 10.0
_METADATA = ("169.254.169.254", 80)  # where EC2 and GCE tell a machine who it is
_METADATA_SECONDS = 1.0
_S3_ADVICE = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_GS_ADVICE = "set GOOGLE_APPLICATION_CREDENTIALS"
_WEB_ADVICE = "write https://user:password@host, or use a signed address"
_ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


@dataclass(frozen=True)
class Access:
    """How to reach one bucket or web server.

    store: obstore's object.
    bucket: empty for a web server.
    host: for messages.
    anonymous: requests are not signed.
    advice: where credentials are looked for, for messages.
    seconds: after which a request is given up.
    tries: of each request, the first one included.
    """

    store: Any
    bucket: str
    host: str
    anonymous: bool
    advice: str
    seconds: float
    tries: int


def open_access(root: str, prefix: str | None = None) -> Access:
    """Connect to ``s3://bucket``, ``gs://bucket`` or ``https://host``, or the folder `prefix` there; sends nothing.

    Raises:
        ImportError: obstore is not installed.
        ValueError: a setting is not understood; the message holds no secret.
    """
    from obstore.store import GCSStore, HTTPStore, S3Store

    seconds, tries = _setting("TILELAB_REMOTE_TIMEOUT", TIMEOUT_SECONDS), int(_setting("TILELAB_REMOTE_TRIES", TRIES))
    parts = urlsplit(root)
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": True,
            "timeout": datetime.timedelta(seconds=seconds),
            "connect_timeout": datetime.timedelta(seconds=min(_CONNECT_SECONDS, seconds)),
            "user_agent": "tilelab",
        },
        # tries are counted in `RemoteStore`, which also sees bodies that break off
        "retry_config": {"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=seconds)},
    }
    bucket = parts.netloc
    if parts.scheme == "s3":
        config = _s3_config()
        endpoint = str(config.get("endpoint") or "Amazon S3")
        store: Any = S3Store(bucket, prefix=prefix, config=config, **common)
        return Access(store, bucket, host_of(endpoint), bool(config.get("skip_signature")), _S3_ADVICE, seconds, tries)
    if parts.scheme == "gs":
        anonymous = not _has_google_credentials()
        config = {"skip_signature": True} if anonymous else {}
        if base := os.environ.get("STORAGE_EMULATOR_HOST"):
            config["base_url"] = base if "://" in base else f"http://{base}"
        store = GCSStore(bucket, prefix=prefix, config=config, **common)
        return Access(
            store, bucket, host_of(str(config.get("base_url", "Google"))), anonymous, _GS_ADVICE, seconds, tries
        )
    anonymous = not (parts.username or parts.query)
    if parts.username:
        known = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        common["client_options"]["default_headers"] = {"Authorization": f"Basic {b64encode(known).decode()}"}
    address = urlunsplit((parts.scheme, host_of(root), quote(prefix or ""), parts.query, ""))
    return Access(HTTPStore.from_url(address, **common), "", host_of(root), anonymous, _WEB_ADVICE, seconds, tries)


def host_of(address: str) -> str:
    """Host and port of an address, without user and password."""
    parts = urlsplit(address)
    return parts.netloc.rpartition("@")[2] if parts.netloc else address


def clean_uri(uri: str) -> str:
    """An address without what may be secret: user, password, query and fragment."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # a bracket in the password, say
        return uri.partition("://")[0] + "://..."
    if parts.scheme == "file":
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError(f"{name}={text} is not a positive number")
    return value


def _s3_config() -> dict[str, Any]:
    """Settings for obstore, which reads the plain AWS_ variables by itself."""
    config: dict[str, Any] = {}
    environment = os.environ
    profile = _profile(environment)
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    )
    if endpoint:
        config["endpoint"] = endpoint
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or profile.get("region")
    config["region"] = region or "us-east-1"
    if environment.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes"):
        config["skip_signature"] = True
    elif bool(environment.get("AWS_ACCESS_KEY_ID")) != bool(environment.get("AWS_SECRET_ACCESS_KEY")):
        raise ValueError("only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set: set both")
    elif environment.get("AWS_ACCESS_KEY_ID") or any(environment.get(name) for name in _ROLES):
        pass
    elif "aws_access_key_id" in profile:
        config["access_key_id"] = profile["aws_access_key_id"]
        config["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if "aws_session_token" in profile:
            config["session_token"] = profile["aws_session_token"]
    elif environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" or not _on_cloud_machine():
        config["skip_signature"] = True
    return config


def _profile(environment: Mapping[str, str]) -> dict[str, str]:
    """The entries of the chosen profile in the files that the AWS tools share; what they compute is not among them."""
    name = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    home = Path("~/.aws").expanduser()
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(environment.get(variable) or home / file)
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # said by the missing credentials; the text of the error could quote a secret
        if parser.has_section(section):
            found |= dict(parser.items(section))
    return found


def _has_google_credentials() -> bool:
    environment = os.environ
    if environment.get("STORAGE_EMULATOR_HOST"):
        return False
    names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY")
    if any(environment.get(name) for name in names):
        return True
    return Path("~/.config/gcloud/application_default_credentials.json").expanduser().is_file() or _on_cloud_machine()


@cache
def _on_cloud_machine() -> bool:
    """Whether a metadata service answers; one that is not there would be waited for."""
    try:
        with socket.create_connection(_METADATA, _METADATA_SECONDS) as connection:
            connection.settimeout(_METADATA_SECONDS)
            connection.sendall(f"HEAD / HTTP/1.0\r\nHost: {_METADATA[0]}\r\n\r\n".encode())
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False
