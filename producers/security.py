"""How a Kafka client proves who it is and whom it talks to: one place for producer, consumers and administration.

`options` are the arguments of every aiokafka client; `unreachable` says in words why a broker did not let us in:
aiokafka itself only logs it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import msgspec
from aiokafka import errors as kafka
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from tiers import secret
from tiers.errors import ServiceMissing, SettingsError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
KEY = "kafka.security"
PROBE_S = 10.0
#: What a broker answers to a client that it knows and that may not do this.
FORBIDDEN = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
)


class KafkaSecurity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mechanism`, `username` and a password count with SASL_*; the files (PEM) with SSL and SASL_SSL."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        """Raise SettingsError for what cannot work."""
        if self.protocol not in PROTOCOLS:
            raise SettingsError(f"{KEY}.protocol = {self.protocol!r}: one of {', '.join(PROTOCOLS)}")
        if self.mechanism not in MECHANISMS:
            raise SettingsError(f"{KEY}.mechanism = {self.mechanism!r}: one of {', '.join(MECHANISMS)}")
        named = [name for name in ("username", "password", "password_file") if getattr(self, name)]
        if self.sasl and not (self.username and len(named) == 2):
            raise SettingsError(f"{KEY}.username: {self.protocol} needs it, and one of password and password_file")
        if named and not self.sasl:
            raise SettingsError(f"{KEY}.{named[0]}: {self.protocol} knows no users; set {KEY}.protocol to SASL_SSL")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name)]
        if files and not self.tls:
            raise SettingsError(f"{KEY}.{files[0]}: {self.protocol} is not encrypted; set {KEY}.protocol to SASL_SSL")

    def __repr__(self) -> str:
        return f"KafkaSecurity({self.protocol}, {self.mechanism}, username={self.username!r}, password={self._shown!r})"

    @property
    def _shown(self) -> str:
        return secret.masked(self.password)

    @property
    def sasl(self) -> bool:
        """Whether the client names itself."""
        return self.protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the broker proves its name."""
        return self.protocol.endswith("SSL")

    def options(self) -> dict[str, Any]:
        """Return the arguments of an aiokafka client; SettingsError for a file that does not do."""
        given: dict[str, Any] = {"security_protocol": self.protocol}
        if self.tls:
            given["ssl_context"] = secret.context(self.ca_file, self.cert_file, self.key_file, KEY)
        if self.sasl:
            given["sasl_mechanism"] = self.mechanism
            given["sasl_plain_username"] = self.username
            given["sasl_plain_password"] = secret.password(self.password, self.password_file, KEY)
        return given


def missing(bootstrap: str) -> ServiceMissing:
    """Return the error for a broker that does not answer."""
    return ServiceMissing(
        f"Kafka does not answer at {bootstrap}; start it, or name another with kafka.bootstrap "
        "(ISOTHERM_KAFKA__BOOTSTRAP). `isotherm up` runs a local one"
    )


def forbidden(error: kafka.KafkaError, bootstrap: str) -> ServiceMissing:
    """Return the error for an answer of FORBIDDEN."""
    what = type(error).__name__.removesuffix("AuthorizationFailedError").lower()
    return ServiceMissing(
        f"Kafka at {bootstrap} does not let this user use a {what} ({error}); docs/security.md has the ACLs of a node"
    )


async def unreachable(bootstrap: str, security: KafkaSecurity) -> ServiceMissing:
    """Return why no broker of `bootstrap` lets us in: connects once more to see, for at most PROBE_S a broker."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            async with asyncio.timeout(PROBE_S):
                options = security.options()
                probe = await create_conn(host.strip("[]"), int(port), request_timeout_ms=int(PROBE_S * 900), **options)
                try:
                    await probe.send(MetadataRequest([]))  # before a login a listener answers less than this
                finally:
                    probe.close()
        except (OSError, ValueError, TimeoutError, kafka.KafkaError) as error:
            found = explained(error, address.strip(), security)
            if found is not None:
                return found
    return missing(bootstrap)


def explained(error: BaseException, where: str, security: KafkaSecurity) -> ServiceMissing | None:
    """Return what a failed connection means, None when nobody answered. Pure."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ServiceMissing(
            f"the certificate of Kafka at {where} is not trusted ({error.verify_message}); set {KEY}.ca_file to the "
            "authority that signed it, and kafka.bootstrap to the name that it is for"
        )
    if isinstance(error, ssl.SSLError):
        return ServiceMissing(
            f"no TLS with Kafka at {where} ({error.reason or error}); the listener may be another: see {KEY}.protocol "
            f"({security.protocol}), or it may want a client certificate: {KEY}.cert_file"
        )
    if isinstance(error, kafka.UnsupportedSaslMechanismError):
        return ServiceMissing(f"Kafka at {where} does not take {security.mechanism}; set {KEY}.mechanism ({error})")
    if isinstance(error, (kafka.AuthenticationFailedError, kafka.SaslAuthenticationFailed)):
        return ServiceMissing(
            f"Kafka at {where} refused user {security.username!r}; set {KEY}.username and {KEY}.password "
            "(ISOTHERM_KAFKA__SECURITY__PASSWORD) or password_file"
        )
    if isinstance(error, kafka.IllegalSaslStateError):
        return ServiceMissing(f"the listener of Kafka at {where} knows no SASL; set {KEY}.protocol ({error})")
    if not isinstance(error, (ConnectionRefusedError, TimeoutError, socket.gaierror, ValueError)):
        return ServiceMissing(
            f"Kafka at {where} hung up on {security.protocol}; the listener may want another {KEY}.protocol "
            f"({', '.join(PROTOCOLS)})"
        )
    return None
