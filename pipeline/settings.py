"""All settings, composed of each component's own: defaults, then file, environment and command line.

An unknown key or an impossible value stops the start with the key, the value and the reason. Secrets (URLs with a
password) are shown masked.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from consumers.commit import CommitSettings
from consumers.demote import MoveSettings
from pipeline.snapshot_settings import SnapshotSettings
from pipeline.sql_settings import SqlSettings
from pipeline.tracing import TraceSettings
from producers.access import AccessSettings
from producers.age import AgeSettings
from producers.expiry import ExpirySettings
from producers.publisher import KafkaSettings
from tiers import secret
from tiers.cold_settings import ColdSettings
from tiers.cuda_budget import DTYPES
from tiers.errors import SettingsError
from tiers.glacier_settings import GlacierSettings
from tiers.hot import HotSettings
from tiers.policy import PolicySettings
from tiers.record import ATTRIBUTE_TYPES
from tiers.saved import PARTITIONS_MAX
from tiers.score import METRICS
from tiers.warm_settings import WarmSettings

ENVIRONMENT = "ISOTHERM_"
CONFIG = "ISOTHERM_CONFIG"
#: What the environment tells others: where settings are, where the gateway is and who asks it, which loop to run.
NO_SETTINGS = frozenset({CONFIG, "ISOTHERM_URL", "ISOTHERM_KEY", "ISOTHERM_LOOP"})


class IndexSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bytes_limit` bounds the codes kept for scans (0 = none); at it the oldest glacier rows lose theirs first.

    A codebook is trained once `train_rows` vectors lie below hot (0 = never: every scan is exact). Every `recall_s`
    (0 = never) one record asks what the codes still find; below `recall_min` the log says so.
    """

    bytes_limit: int = 4_294_967_296
    search_threads: int = 2
    train_rows: int = 20_000
    recall_s: float = 60.0
    recall_min: float = 0.9


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`partitions` empty means all. `drain_s` bounds a shutdown; past it the process exits without committing.

    The lease outlives the drain (`lease_ttl_s` > `drain_s`), so that the last commit is still ours to make.
    """

    partitions: list[int] = []
    lease_ttl_s: float = 30.0
    drain_s: float = 20.0


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Without API keys the gateway starts on a loopback `host` only, and answers to that name and `hosts`.

    Keys lie in `keys_file` ("" = <data>/keys), what their hashes are keyed with in `pepper_file` ("" = beside it). What
    a key may do by default: `rate_per_s` requests, `burst` at once, `concurrent` under way (0 = no limit).
    `refused_per_s` bounds the bad keys that one address may send. `metrics_open` shows /metrics to whoever asks.

    `records_max` bounds what one request publishes, lists or looks up; `queries_max` the searches in one request;
    `deadline_ms` every read; `answer_bytes_max` what the hits of an answer carry. `headers_max` to `request_s` bound a
    request before it is read. Of the change streams, `resumes_max` read the topic for themselves at once; what waits
    for one client is bounded by `stream_events_max` and `stream_bytes_max`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: list[str] = []
    keys_file: str = ""
    pepper_file: str = ""
    rate_per_s: float = 1_000.0
    burst: int = 2_000
    concurrent: int = 64
    refused_per_s: float = 5.0
    metrics_open: bool = False
    body_bytes_max: int = 8_388_608
    records_max: int = 1_000
    k_max: int = 1_000
    streams_max: int = 256
    stream_events_max: int = 1_000
    stream_bytes_max: int = 4_194_304
    stream_stall_s: float = 10.0
    stream_keepalive_s: float = 15.0
    resumes_max: int = 8
    at_least_timeout_ms: int = 5_000
    deadline_ms: float = 10_000.0
    queries_max: int = 32
    answer_bytes_max: int = 16_777_216
    url_bytes_max: int = 16_384
    headers_max: int = 100
    header_bytes_max: int = 32_768
    request_s: float = 30.0
    connections_max: int = 1_000
    drain_s: float = 10.0


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`level` debug, info, warning or error; `format` auto (colours on a terminal, else JSON), json or console."""

    level: str = "info"
    format: str = "auto"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a node can be told."""

    data: str = "isotherm-data"
    dim: int = 256
    metric: str = "cosine"
    embedder: str = ""
    attributes: dict[str, str] = {}
    kafka: KafkaSettings = KafkaSettings()
    hot: HotSettings = HotSettings()
    warm: WarmSettings = WarmSettings()
    cold: ColdSettings = ColdSettings()
    glacier: GlacierSettings = GlacierSettings()
    index: IndexSettings = IndexSettings()
    policy: PolicySettings = PolicySettings()
    age: AgeSettings = AgeSettings()
    expiry: ExpirySettings = ExpirySettings()
    access: AccessSettings = AccessSettings()
    move: MoveSettings = MoveSettings()
    commit: CommitSettings = CommitSettings()
    node: NodeSettings = NodeSettings()
    gateway: GatewaySettings = GatewaySettings()
    sql: SqlSettings = SqlSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()

    def owned(self) -> list[int]:
        """Return the partitions of this node."""
        return self.node.partitions or list(range(self.kafka.partitions))


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings; `given` are dotted keys from the command line. SettingsError names what is wrong."""
    environment = os.environ if environment is None else environment
    file = file if file is not None else _named(environment)
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{file}: {error}") from error
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT) and name not in NO_SETTINGS:
            _put(values, name.removeprefix(ENVIRONMENT).lower().split("__"), _value(text))
    for key, value in (given or {}).items():
        _put(values, key.split("."), value)
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_readable(str(error))) from error
    check(settings)
    return settings


def _named(environment: Mapping[str, str]) -> Path | None:
    return Path(environment[CONFIG]) if CONFIG in environment else None


def _value(text: str) -> Any:
    """Return a list or table where the text is JSON of one, else the text (converted to its field's type later)."""
    return msgspec.json.decode(text) if text[:1] in ("[", "{") else text


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{'.'.join(path)}: {name} is not a table of settings")
    values[path[-1]] = value


def _readable(message: str) -> str:
    """Turn msgspec's message into "key: reason"."""
    reason, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    if unknown:
        return f"{key}.{unknown[1]}".lstrip(".") + ": no such setting; `isotherm config show` lists them all"
    return f"{key or 'settings'}: {reason[0].lower()}{reason[1:]}"


def check(settings: Settings) -> None:
    """Refuse values and combinations that cannot work."""
    wrong = [
        ("dim", settings.dim, not 1 <= settings.dim <= 16_384, "a vector has 1 to 16384 floats"),
        ("metric", settings.metric, settings.metric not in METRICS, f"one of {', '.join(METRICS)}"),
        ("embedder", settings.embedder, settings.embedder not in ("", "wordllama"), "empty or wordllama"),
        (
            "kafka.partitions",
            settings.kafka.partitions,
            not 1 <= settings.kafka.partitions <= PARTITIONS_MAX,
            f"1 to {PARTITIONS_MAX}",
        ),
        ("index.recall_s", settings.index.recall_s, settings.index.recall_s < 0, "seconds, 0 = never"),
        ("index.recall_min", settings.index.recall_min, not 0 <= settings.index.recall_min <= 1, "a share, 0 to 1"),
        (
            "node.partitions",
            settings.node.partitions,
            not set(settings.owned()) <= set(range(settings.kafka.partitions)),
            f"partitions are 0 to {settings.kafka.partitions - 1}",
        ),
        (
            "hot.capacity_rows",
            settings.hot.capacity_rows,
            settings.hot.capacity_rows < 2 * settings.hot.slab_rows * len(settings.owned()),
            f"each of {len(settings.owned())} partitions needs two slabs: {2 * settings.hot.slab_rows} rows for each",
        ),
        ("hot.dtype", settings.hot.dtype, settings.hot.dtype not in DTYPES, f"one of {', '.join(DTYPES)}"),
        (
            "hot.copy_fraction",
            settings.hot.copy_fraction,
            not 0 <= settings.hot.copy_fraction <= 0.5,
            "copies take none to half of hot: 0 to 0.5",
        ),
        (
            "policy.copy_heat_min",
            settings.policy.copy_heat_min,
            not 0 <= settings.policy.copy_heat_min < settings.policy.promote_heat_min,
            f"below promote_heat_min ({settings.policy.promote_heat_min:g}), or copies come and go",
        ),
        (
            "policy.promote_margin",
            settings.policy.promote_margin,
            settings.policy.promote_margin <= 1,
            "more than 1, or two records of equal heat take turns",
        ),
        (
            "policy.low_water",
            settings.policy.low_water,
            not 0 < settings.policy.low_water < settings.policy.high_water <= 1,
            f"0 < low_water < high_water ({settings.policy.high_water}) <= 1",
        ),
        (
            "node.lease_ttl_s",
            settings.node.lease_ttl_s,
            settings.node.lease_ttl_s <= settings.node.drain_s,
            f"the lease must outlive the drain (node.drain_s = {settings.node.drain_s:g})",
        ),
        ("gateway.rate_per_s", settings.gateway.rate_per_s, settings.gateway.rate_per_s < 0, "0 (none) or more"),
        ("gateway.concurrent", settings.gateway.concurrent, settings.gateway.concurrent < 0, "0 (none) or more"),
        ("gateway.refused_per_s", settings.gateway.refused_per_s, settings.gateway.refused_per_s <= 0, "more than 0"),
        ("trace.ratio", settings.trace.ratio, not 0 <= settings.trace.ratio <= 1, "a part of all traces: 0 to 1"),
        (
            "trace.endpoint",
            secret.masked_url(settings.trace.endpoint),
            urlsplit(settings.trace.endpoint).scheme not in ("http", "https"),
            "the URL of an OTLP receiver, as in http://127.0.0.1:4318/v1/traces",
        ),
        ("log.level", settings.log.level, settings.log.level not in _LEVELS, f"one of {', '.join(_LEVELS)}"),
    ]
    wrong += [
        (f"attributes.{name}", kind, kind not in ATTRIBUTE_TYPES, f"one of {', '.join(ATTRIBUTE_TYPES)}")
        for name, kind in settings.attributes.items()
    ]
    for key, value, bad, reason in wrong:
        if bad:
            raise SettingsError(f"{key} = {value!r}: {reason}")


_LEVELS = ("debug", "info", "warning", "error")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file: every key, its type and its default."""
    made: dict[str, Any] = msgspec.json.schema(Settings)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Isotherm", **made}


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, passwords in URLs masked."""
    values: dict[str, Any] = msgspec.to_builtins(settings)
    values["warm"]["url"] = secret.masked_url(settings.warm.url)
    for table in (values["warm"], values["kafka"]["security"]):
        table["password"] = secret.masked(table["password"])
    for name in ("endpoint", "path"):
        values["glacier"][name] = secret.masked_url(values["glacier"][name])
    values["trace"]["endpoint"] = secret.masked_url(settings.trace.endpoint)
    values["trace"]["headers"] = {name: secret.masked(value) for name, value in settings.trace.headers.items()}
    return values
