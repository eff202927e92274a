"""Keys as values and as files: what lets in, until when, and what a thief of one file has."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import keys
from pipeline.key_file import KeyFiles, chance
from pipeline.keyring import Grant, Keyring, KeysUnreadable, Refusal
from pipeline.keys import Asked, Key, Limits, Token
from pipeline.limits import Bucket, Buckets, take
from tiers.errors import InvalidRecord, SettingsError

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PEPPER = bytes(range(32))
HOUR = timedelta(hours=1)
READER = Asked("agent", ["read"], ["a"])


class Clock:
    """A wall clock and a monotonic one that go only when told."""

    def __init__(self) -> None:
        self.now, self.s = NOW, 0.0

    def go(self, seconds: float) -> None:
        """Let time pass."""
        self.now, self.s = self.now + timedelta(seconds=seconds), self.s + seconds


def ring_of(files: KeyFiles, clock: Clock) -> Keyring:
    """Return the opened keys of a file."""
    ring = Keyring(files, Limits(rate_per_s=5.0), now=lambda: clock.now, monotonic_s=lambda: clock.s)
    ring.open()
    return ring


def made(files: KeyFiles, asked: Asked = READER, now: datetime = NOW) -> Token:
    """Put a new key into a file; returns its token."""
    with files.changing() as known:
        several, token = keys.create(known, asked, chance(), files.ensure_pepper(), now)
        files.write(several)
    return token


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    return KeyFiles.under(str(tmp_path / "data"), "", "")


# -- values ------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=38, max_size=38))
def test_a_token_is_read_as_it_was_written(bits: bytes) -> None:
    """Whatever the random bytes are."""
    token = keys.new_token(bits)

    assert token == keys.parse_token(token.text())


@given(st.text(max_size=80) | st.from_regex(r"iso_.{0,70}"))
def test_what_is_no_token_is_none(text: str) -> None:
    """Any other text is no token, and no error; what is taken for one is written alike."""
    found = keys.parse_token(text)

    assert found is None or found.text() == text


def test_a_key_matches_its_own_secret_pepper_and_id_only() -> None:
    """Another secret, another pepper, another key's id, no key at all: nothing matches."""
    token, other = keys.new_token(bytes(38)), keys.new_token(bytes([1] * 38))
    kept = keys.digest(token, PEPPER)

    assert keys.matches(token, kept, PEPPER)
    assert not keys.matches(Token(token.id, other.secret), kept, PEPPER)
    assert not keys.matches(Token(other.id, token.secret), kept, PEPPER)
    assert not keys.matches(token, kept, bytes(32))
    assert not keys.matches(token, None, PEPPER)


def test_a_check_costs_the_same_hash_whether_or_not_the_key_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of an unknown id is hashed and compared like any other, in constant time."""
    compared: list[int] = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
    token = keys.new_token(bytes(38))
    for kept in (None, bytes(32), keys.digest(token, PEPPER)):
        keys.matches(token, kept, PEPPER)

    assert [32, 32, 32] == compared


def test_a_key_lives_between_its_times_and_until_it_is_revoked() -> None:
    """The first moment is in, the last is out, and a revoked key stays revoked."""
    asked = Asked("a", ["read"], None, not_before=NOW + HOUR, expires=NOW + 2 * HOUR)
    (key,), _ = keys.create([], asked, chance(), PEPPER, NOW)
    moments = (NOW, NOW + HOUR, NOW + 2 * HOUR - timedelta.resolution, NOW + 2 * HOUR)

    assert ["not yet valid", "live", "live", "expired"] == [keys.state(key, moment) for moment in moments]
    (gone,) = keys.revoke([key], key.id, NOW + HOUR)
    assert {"revoked"} == {keys.state(gone, moment) for moment in moments}
    assert gone == keys.revoke([gone], key.id, NOW + 2 * HOUR)[0]


def test_a_successor_may_do_the_same_while_the_old_key_runs_out() -> None:
    """Both are valid during the overlap, then only the new one, which lives as long as the old one did."""
    asked = Asked("a", ["write", "read"], ["b", "a"], expires=NOW + 24 * HOUR, rate_per_s=3.0, burst=4, concurrent=5)
    several, _ = keys.create([], asked, chance(), PEPPER, NOW)
    later = NOW + HOUR
    (old, new), token = keys.rotate(several, several[0].id, HOUR, chance(), PEPPER, later)
    same = ("name", "scopes", "namespaces", "rate_per_s", "burst", "concurrent")

    assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
    assert (later + HOUR, later + 24 * HOUR) == (old.expires, new.expires)
    assert (old.id, token.id) == (new.replaces, new.id)
    assert ["live", "live"] == [keys.state(key, later) for key in (old, new)]
    assert ["expired", "live"] == [keys.state(key, later + HOUR) for key in (old, new)]


def test_an_overlap_never_prolongs_a_key() -> None:
    """A key that ends in an hour still does when it is rotated with a day's overlap; a dead one cannot be rotated."""
    several, _ = keys.create([], READER._replace(expires=NOW + HOUR), chance(), PEPPER, NOW)
    (old, _), _ = keys.rotate(several, several[0].id, 24 * HOUR, chance(), PEPPER, NOW)

    assert NOW + HOUR == old.expires
    with pytest.raises(InvalidRecord, match="expired"):
        keys.rotate(several, several[0].id, HOUR, chance(), PEPPER, NOW + HOUR)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read", "root"]}, "scopes"),
        ({"namespaces": []}, "namespaces"),
        ({"namespaces": ["a/b"]}, "namespaces"),
        ({"namespaces": [""]}, "id_namespace"),
        ({"namespaces": ["a\x00"]}, "id_control"),
        ({"expires": NOW}, "expires"),
        ({"expires": NOW + HOUR, "not_before": NOW + HOUR}, "not_before"),
        ({"rate_per_s": -1.0}, "rate_per_s"),
        ({"rate_per_s": float("nan")}, "rate_per_s"),
        ({"concurrent": -1}, "concurrent"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(changed: dict[str, object], field: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidRecord) as caught:
        keys.create([], READER._replace(**changed), chance(), PEPPER, NOW)

    assert field == caught.value.reason


@pytest.mark.parametrize("text", ["", "5", "5 h", "-5h", "h", "1e3h", "2026-01-01", "2026-01-01T00:00:00", "999999w"])
def test_a_time_that_cannot_be_read_is_refused(text: str) -> None:
    """Durations and times with a zone, nothing else."""
    with pytest.raises(InvalidRecord):
        keys.moment(text, NOW)


def test_times_are_durations_or_rfc_3339() -> None:
    """Both give a time in UTC."""
    assert NOW + timedelta(days=30) == keys.moment("30d", NOW)
    assert NOW == keys.moment("2026-11-23T13:00:00+01:00", NOW)


def test_dead_keys_are_pruned() -> None:
    """Revoked and expired ones go; one that is not valid yet stays."""
    several: list[Key] = []
    for more in ({}, {"expires": NOW + HOUR}, {"not_before": NOW + 9 * HOUR}):
        several, _ = keys.create(several, READER._replace(**more), chance(), PEPPER, NOW)
    several = keys.revoke(several, several[0].id, NOW)

    assert [several[2].id] == [key.id for key in keys.prune(several, NOW + HOUR)]


# -- limits ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 1_000, allow_nan=False), max_size=60), st.floats(0.1, 50), st.integers(0, 20))
def test_no_window_holds_more_than_burst_and_rate(moments: list[float], rate: float, burst: int) -> None:
    """However requests come, those let in up to any moment are at most the burst and what came back since."""
    bucket, passed = None, []
    for now in moments:
        bucket, wait = take(bucket, rate, burst, now)
        assert (wait == 0.0) or wait <= 1.0 / rate + 1e-9
        if not wait:
            passed.append(bucket.at_s)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= max(1, burst) + rate * (passed[last] - start) + 1e-6


def test_who_waits_as_told_is_let_in() -> None:
    """The wait that a refusal names is enough."""
    bucket, _ = take(Bucket(0.25, 5.0), 2.0, 3, 5.0)
    _, wait = take(bucket, 2.0, 3, 5.0)

    assert 0.375 == wait
    assert 0.0 == take(bucket, 2.0, 3, 5.0 + wait)[1]


def test_buckets_are_bounded() -> None:
    """A million names take the room of the most that are kept."""
    buckets = Buckets(10)
    for name in range(1_000):
        buckets.take(str(name), 1.0, 1, 0.0)

    assert 10 == len(buckets)


# -- files -------------------------------------------------------------------------------------------------------------


def test_nothing_of_a_key_lies_in_the_files_but_its_hash(files: KeyFiles) -> None:
    """Both are private, and the secret is in neither."""
    token = made(files)
    for file in (files.keys, files.pepper):
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)
        assert token.secret.encode() not in file.read_bytes()
    assert token.secret not in repr(token)
    assert json.loads(files.keys.read_bytes())["keys"][0]["hash"] not in repr(files.read())


def test_a_file_that_others_can_read_is_refused(files: KeyFiles) -> None:
    """Keys and pepper alike, and the message says what to run."""
    made(files)
    for file in (files.keys, files.pepper):
        file.chmod(0o640)
        with pytest.raises(SettingsError, match=r"mode 0640\): chmod 600"):
            ring_of(files, Clock())
        file.chmod(0o600)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[", b'{"format": 2, "keys": []}', b'{"format":1,"keys":[{"id":"a"}]}']
)
def test_a_file_that_is_none_is_refused(files: KeyFiles, content: bytes) -> None:
    """Without a word of what is in it."""
    made(files)
    files.keys.write_bytes(content)
    with pytest.raises(SettingsError, match="not a key file"):
        ring_of(files, Clock())


def test_a_place_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    """It is not taken for one without keys: that would open the gateway."""
    (tmp_path / "file").write_text("")
    files = KeyFiles.under("", str(tmp_path / "file" / "keys"), "")
    with pytest.raises(SettingsError, match=r"gateway\.keys_file"):
        ring_of(files, Clock())


def test_without_its_pepper_no_key_file_is_used_or_changed(files: KeyFiles) -> None:
    """A new pepper would silently end every key."""
    made(files)
    files.pepper.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        ring_of(files, Clock())
    with pytest.raises(SettingsError, match="bring it back"):
        made(files)


def test_changes_at_once_lose_nothing(files: KeyFiles) -> None:
    """Ten commands that run together make ten keys."""
    threads = [threading.Thread(target=made, args=(files,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 10 == len(files.read())
    assert [] == [file for file in files.keys.parent.iterdir() if file.name.startswith(".")]


def test_a_running_gateway_follows_the_file(files: KeyFiles) -> None:
    """New keys and revocations count at the next look, a second later at most; in between the file is not touched."""
    clock, first = Clock(), made(files)
    ring = ring_of(files, clock)
    second = made(files)
    assert isinstance(ring.find(second.text()), Refusal)
    grant = ring.find(first.text())
    assert isinstance(grant, Grant)

    with files.changing() as known:
        files.write(keys.revoke(known, first.id, NOW))
    clock.go(0.999)
    ring.check()
    assert isinstance(ring.find(first.text()), Grant)
    clock.go(0.001)
    ring.check()
    assert Refusal("this key is revoked") == ring.find(first.text())
    assert isinstance(ring.find(second.text()), Grant)
    assert not ring.still(grant)


def test_a_key_ends_by_the_clock_alone(files: KeyFiles) -> None:
    """Nobody has to touch the file."""
    clock, token = Clock(), made(files, READER._replace(expires=NOW + HOUR))
    ring = ring_of(files, clock)
    grant = ring.find(token.text())
    clock.go(3_600)

    assert Refusal("this key is expired") == ring.find(token.text())
    assert isinstance(grant, Grant)
    assert not ring.still(grant)


def test_who_has_a_key_with_other_rights_now_is_not_the_same(files: KeyFiles) -> None:
    """An answer that streams ends when the key's namespaces change."""
    clock, token = Clock(), made(files)
    ring = ring_of(files, clock)
    grant = ring.find(token.text())
    assert isinstance(grant, Grant)
    assert ring.still(grant)
    with files.changing() as known:
        files.write([msgspec.structs.replace(known[0], namespaces=["b"])])
    clock.go(1)

    assert not ring.still(grant)


@pytest.mark.parametrize("damage", ["gone", "noise", "readable"])
def test_a_file_that_breaks_while_running_lets_nobody_in_until_it_is_mended(files: KeyFiles, damage: str) -> None:
    """Fail closed: not "there are no keys, so all is allowed"."""
    clock, token = Clock(), made(files)
    ring = ring_of(files, clock)
    good = files.keys.read_bytes()
    if damage == "gone":
        files.keys.unlink()
    elif damage == "noise":
        files.keys.write_bytes(b"noise")
    else:
        files.keys.chmod(0o644)
        os.utime(files.keys, ns=(1, 1))
    for _ in range(3):
        clock.go(1)
        with pytest.raises(KeysUnreadable):
            ring.check()
        assert ring.required
        assert isinstance(ring.find(token.text()), Refusal)
    files.keys.write_bytes(good)
    files.keys.chmod(0o600)
    clock.go(1)
    ring.check()

    assert isinstance(ring.find(token.text()), Grant)


def test_the_first_key_closes_a_gateway_that_runs_without(files: KeyFiles) -> None:
    """It need not be started again; and revoking the last key opens nothing."""
    clock = Clock()
    ring = ring_of(files, clock)
    assert not ring.required
    token = made(files)
    clock.go(1)
    ring.check()
    assert (True, 1) == (ring.required, ring.live())

    with files.changing() as known:
        files.write(keys.prune(keys.revoke(known, token.id, NOW), NOW))
    clock.go(1)
    ring.check()
    assert (True, 0) == (ring.required, ring.live())
    assert ring_of(files, clock).required, "nor does a restart"


def test_limits_of_a_key_come_before_the_settings(files: KeyFiles) -> None:
    """What a key does not say, the settings do; 0 says that there is no limit."""
    clock = Clock()
    plain, free = made(files), made(files, READER._replace(rate_per_s=0.0, concurrent=2))
    ring = ring_of(files, clock)
    found = [grant.limits for token in (plain, free) if isinstance(grant := ring.find(token.text()), Grant)]

    assert [Limits(rate_per_s=5.0), Limits(rate_per_s=0.0, concurrent=2)] == found
