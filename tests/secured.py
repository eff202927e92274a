"""Servers that enforce what docs/security.md says: TLS, users, and ACLs read from that very file."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

import trustme
from confluent_kafka import admin
from cryptography.hazmat.primitives import serialization

from pipeline.stack import HOST

SECURITY_MD = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
PASSWORD = "canary-5f2c"
PREFIX = "isotherm"

#: Beside the open listener for the test itself: SASL_SSL for users, SSL for those with a certificate.
LISTENERS = """
listeners=PLAINTEXT://{{host}}:{{kafka}},CONTROLLER://{{host}}:{{controller}},USERS://{{host}}:{users},CERTS://{{host}}:{certs}
advertised.listeners=PLAINTEXT://{{host}}:{{kafka}},CONTROLLER://{{host}}:{{controller}},USERS://{{host}}:{users},CERTS://{{host}}:{certs}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,USERS:SASL_SSL,CERTS:SSL
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.certs.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.users.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_isotherm="{password}";
listener.name.users.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.users.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


class Paper(NamedTuple):
    """PEM files of one authority: `ca`, the server's, a client's, and those of an authority nobody trusts."""

    folder: Path
    ca: trustme.CA
    server: trustme.LeafCert

    def file(self, name: str) -> str:
        """Return the path of a file by its name."""
        return str(self.folder / f"{name}.pem")


def paper(folder: Path) -> Paper:
    """Write certificates for this machine's loopback into a folder."""
    ca, stranger = trustme.CA(), trustme.CA()
    server, client, passed = ca.issue_cert(HOST, "localhost"), ca.issue_cert("node@isotherm"), folder / "locked-key.pem"
    ca.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    (folder / "server.pem").write_bytes(_pkcs8(server) + b"".join(pem.bytes() for pem in server.cert_chain_pems))
    (folder / "client.pem").write_bytes(b"".join(pem.bytes() for pem in client.cert_chain_pems))
    (folder / "client-key.pem").write_bytes(_pkcs8(client))
    passed.write_bytes(_pkcs8(client, serialization.BestAvailableEncryption(b"passphrase")))
    return Paper(folder, ca, server)


def _pkcs8(cert: trustme.LeafCert, lock: serialization.KeySerializationEncryption | None = None) -> bytes:
    """Return the private key as Kafka reads it."""
    key = serialization.load_pem_private_key(cert.private_key_pem.bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, lock or serialization.NoEncryption())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def block(name: str) -> str:
    """Return the code block that docs/security.md marks with this name."""
    found = re.search(rf"<!-- acl: {name} -->\n```\w+\n(.*?)```", SECURITY_MD, re.DOTALL)
    assert found, name
    return found[1]


def redis_acl() -> str:
    """Return the ACL file of a server that has only the documented user."""
    return f"user default off\n{block('redis').replace('PASSWORD', PASSWORD)}"


def kafka_acls(name: str) -> list[admin.AclBinding]:
    """Return what the documented kafka-acls.sh lines make."""
    made: list[admin.AclBinding] = []
    for line in block(name).strip().splitlines():
        principal = re.search(r"--allow-principal (\S+)", line)
        assert principal, line
        kind = admin.ResourceType.TOPIC if "--topic" in line else admin.ResourceType.GROUP
        resource = re.search(r"--(?:topic|group) (\S+)", line)
        assert resource, line
        prefixed = "--resource-pattern-type prefixed" in line
        pattern = admin.ResourcePatternType.PREFIXED if prefixed else admin.ResourcePatternType.LITERAL
        for operation in re.findall(r"--operation (\w+)", line):
            verb = admin.AclOperation[operation.upper()]
            allow = admin.AclPermissionType.ALLOW
            made.append(admin.AclBinding(kind, resource[1], pattern, principal[1], "*", verb, allow))
    return made


def enforce(bootstrap: str) -> None:
    """Make the users and their ACLs, as an administrator at the open listener."""
    client = admin.AdminClient({"bootstrap.servers": bootstrap})
    mechanisms = (admin.ScramMechanism.SCRAM_SHA_256, admin.ScramMechanism.SCRAM_SHA_512)
    for user in ("isotherm", "sensor", "auditor", "nobody"):
        for mechanism in mechanisms:  # one alteration a user and request
            info = admin.ScramCredentialInfo(mechanism, 4096)
            upsert = admin.UserScramCredentialUpsertion(user, info, PASSWORD.encode())
            for done in client.alter_user_scram_credentials([upsert]).values():
                done.result(30)
    for done in client.create_acls([*kafka_acls("kafka node"), *kafka_acls("kafka producer and subscriber")]).values():
        done.result(30)
