"""Who is let in: every route against every kind of key, limits, loopback without keys, and keys that end meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from pipeline.auth import NEEDS, OPEN, OPERATE, READ, SCOPES, WRITE
from pipeline.guard import Guard, check_exposed, is_loopback, keyring_of
from pipeline.routes import Gateway
from pipeline.settings import GatewaySettings, Settings
from tests.access import VECTOR, Keyed, bad_keys, keyed, make_key, operations, revoke_key
from tests.nodes import DIM, until
from tiers.errors import SettingsError


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Keyed]:
    """A node whose gateway wants keys."""
    gateway = msgspec.structs.replace(settings.gateway, refused_per_s=10_000.0)
    settings = msgspec.structs.replace(settings, gateway=gateway)
    make_key(settings)
    async with keyed(settings) as one:
        yield one


def problem_of(response: httpx.Response) -> str:
    """Return the type of a problem object."""
    assert "application/problem+json" == response.headers["content-type"], response.text
    return str(response.json()["type"]).removeprefix("urn:isotherm:")


def guarded(node: Keyed) -> list[tuple[str, str]]:
    """Return the operations that want a key; streams are asked in tests of their own."""
    found = [each for each in operations(node.gateway) if NEEDS["GET" if each[0] == "HEAD" else each[0], each[1]]]
    return [each for each in found if need_of(*each).scope is not None]


def need_of(method: str, path: str):
    """Return what an operation demands."""
    return NEEDS["GET" if method == "HEAD" else method, path]


async def test_every_route_refuses_every_bad_key(node: Keyed) -> None:
    """401 with a challenge and a problem object, whatever is wrong with the key, and nothing has happened."""
    strangers = bad_keys(node.settings)
    node.look()
    for method, path in guarded(node):
        for kind, headers in strangers.items():
            answer = await node.ask(headers, method, path)

            assert 401 == answer.status_code, (method, path, kind)
            assert answer.headers["www-authenticate"].startswith('Bearer realm="isotherm"'), (method, path, kind)
            assert method == "HEAD" or "unauthorized" == problem_of(answer), (method, path, kind)
    assert 0 == len(node.memory.node.index)


async def test_two_keys_are_none(node: Keyed) -> None:
    """Which of them counts would be anyone's guess."""
    good = node.key()
    answer = await node.http.get("/v1/tiers", headers=[*good.items(), *good.items()])

    assert 401 == answer.status_code


async def test_every_route_wants_its_own_scope(node: Keyed) -> None:
    """A key with all the others is a 403 that names the one that is missing; with it alone it comes through."""
    lacking = {scope: node.key(scopes=tuple(set(SCOPES) - {scope})) for scope in SCOPES}
    having = {scope: node.key(scopes=(scope,)) for scope in SCOPES}
    for method, path in guarded(node):
        scope = str(need_of(method, path).scope)
        answer = await node.ask(lacking[scope], method, path)
        assert 403 == answer.status_code, (method, path)
        assert f'scope="{scope}"' in answer.headers["www-authenticate"]
        if path != "/v1/changes":
            let_in = await node.ask(having[scope], method, path)
            assert let_in.status_code not in (401, 403), (method, path, let_in.text)


async def test_routes_about_all_namespaces_want_a_key_of_all(node: Keyed) -> None:
    """A key of some namespaces is a 403, whatever its scopes; nothing is cleared."""
    some, everything = node.key("a"), node.key()
    whole = [each for each in guarded(node) if need_of(*each).whole]
    assert {("POST", "/v1/tiers/{tier}:clear"), ("GET", "/metrics")} <= set(whole)
    for method, path in whole:
        assert 403 == (await node.ask(some, method, path)).status_code, (method, path)
        let_in = await node.ask(everything, method, path)
        assert let_in.status_code not in (401, 403), (method, path, let_in.text)


async def test_open_routes_want_nothing_and_show_nothing(node: Keyed) -> None:
    """Probes are answered with a word."""
    for path, word in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        answer = await node.http.get(path)
        assert (200, word) == (answer.status_code, answer.text)
    assert 404 == (await node.http.get("/v1/unknown")).status_code


async def test_a_key_revoked_is_refused_within_a_second(node: Keyed) -> None:
    """A running gateway follows the file; so it does for a key that is new."""
    good = node.key(scopes=(READ,))
    await until(lambda: _is(node, good, 200))
    revoke_key(node.settings, good["authorization"])

    await until(lambda: _is(node, good, 401))


async def _is(node: Keyed, headers: dict[str, str], status: int) -> bool:
    return (await node.http.get("/v1/tiers", headers=headers)).status_code == status


async def test_a_stream_ends_with_its_key(node: Keyed) -> None:
    """What comes after the revocation is not sent any more: the connection is cut instead."""
    good = node.key()
    await until(lambda: _is(node, good, 200))
    async with node.http.stream("GET", "/v1/changes?from=beginning", headers=good) as stream:
        received = stream.aiter_bytes()
        await anext(received)
        revoke_key(node.settings, good["authorization"])
        await until(lambda: _is(node, good, 401))
        await node.memory.publish([("a/1", b'{"vector": [%s]}' % b",".join([b"1"] * DIM))])
        await until(lambda: len(node.memory.node.index) == 1)
        await node.memory.clear("hot")  # announces a change
        with pytest.raises(httpx.RemoteProtocolError):  # and not an end: it would look as if that were all
            assert b"a/1" not in b"".join([part async for part in received])
    await until(lambda: not node.gateway.feed.streams)


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_key_has_its_rate(node: Keyed) -> None:
    """Beyond burst and rate it is a 429 that says when to come again; another key is not touched."""
    slow, other = node.key(rate_per_s=0.01, burst=3), node.key()
    answers = [await node.http.get("/v1/tiers", headers=slow) for _ in range(4)]

    assert [200, 200, 200, 429] == [answer.status_code for answer in answers]
    assert "rate-limited" == problem_of(answers[3])
    assert 50 <= int(answers[3].headers["retry-after"]) <= 100
    assert await _is(node, other, 200)


async def test_a_key_has_its_share_of_requests_under_way(node: Keyed) -> None:
    """A stream counts until it ends, and its end gives the room back, also when the client just leaves."""
    narrow = node.key(concurrent=1)
    async with node.http.stream("GET", "/v1/changes", headers=narrow) as stream:
        await anext(stream.aiter_bytes())
        assert await _is(node, narrow, 429)
    await until(lambda: _is(node, narrow, 200))
    for _ in range(3):  # a refused or failed request holds nothing
        assert 400 == (await node.http.post("/v1/search", json={}, headers=narrow)).status_code


async def test_bad_keys_are_slowed_down_and_good_ones_are_not(settings: Settings) -> None:
    """An address that goes on guessing is told to wait; a valid key from there is served all the same."""
    gateway = msgspec.structs.replace(settings.gateway, refused_per_s=0.05)  # one at once, the next 20 s later
    settings = msgspec.structs.replace(settings, gateway=gateway)
    good = make_key(settings)
    async with keyed(settings) as node:
        bad = {"authorization": "Bearer iso_" + "0" * 12 + "_" + "x" * 43}
        codes = [(await node.http.get("/v1/tiers", headers=bad)).status_code for _ in range(4)]

        assert [401, 429, 429, 429] == codes
        assert await _is(node, {"authorization": f"Bearer {good}"}, 200)


# -- without keys ------------------------------------------------------------------------------------------------------

STRANGERS: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"host": "evil.example:8080"},
    {"host": "evil.example", "origin": "http://evil.example"},
    {"host": "localhost.evil.example"},
    {"host": "127.0.0.1.evil.example"},
    {"host": "[::1"},
    {"host": ""},
    {"origin": "http://localhost:1"},
]


async def test_without_keys_only_programs_of_this_machine_are_answered(settings: Settings) -> None:
    """A page of another site, or a name that was made to point here (DNS rebinding), gets a 403 from every route."""
    gateway = msgspec.structs.replace(settings.gateway, hosts=["memory.example"])
    async with keyed(msgspec.structs.replace(settings, gateway=gateway)) as node:
        for method, path in guarded(node):
            for headers in STRANGERS:
                answer = await node.ask(headers, method, path)
                assert 403 == answer.status_code, (method, path, headers)
        assert 0 == len(node.memory.node.index)
        for host in ("localhost:99", "127.0.0.1", "[::1]:80", "memory.example"):
            assert 200 == (await node.http.get("/v1/tiers", headers={"host": host})).status_code, host
        assert 200 == (await node.http.get("/metrics")).status_code
        posted = await node.http.post("/v1/memories", json={"id": "b/1", "vector": VECTOR})
        assert 202 == posted.status_code


async def test_the_first_key_closes_a_running_gateway(settings: Settings) -> None:
    """Nobody needs to start it again; with keys a Host or Origin is anyone's, as behind a proxy."""
    async with keyed(settings) as node:
        assert await _is(node, {}, 200)
        good = node.key()
        await until(lambda: _is(node, {}, 401))
        assert await _is(node, {**good, "host": "memory.example", "origin": "https://app.example"}, 200)


# -- starting ----------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "memory.example", ""])
def test_others_are_let_near_only_where_a_key_is_live(tmp_path: Path, host: str) -> None:
    """Any host but loopback wants a key file with a live key, and the refusal says what to run."""
    settings = Settings(data=str(tmp_path), gateway=GatewaySettings(host=host))
    with pytest.raises(SettingsError, match="isotherm keys create"):
        check_exposed(settings)
    key = make_key(settings)
    check_exposed(settings)
    revoke_key(settings, key)
    with pytest.raises(SettingsError, match="isotherm keys create"):
        check_exposed(settings)


@pytest.mark.unit
def test_loopback_is_known_by_address_and_by_its_one_name() -> None:
    """127.0.0.0/8, ::1 and localhost; nothing that only looks like it."""
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "localhost.example", "127.1", "", "::ffff:1.2.3.4")))


@pytest.mark.unit
def test_a_route_without_a_scope_stops_the_start(tmp_path: Path) -> None:
    """A new route and a new method of an old one alike: the message says where to write it down."""
    guard = Guard(GatewaySettings(), keyring_of(Settings(data=str(tmp_path))))

    for method, path in (("GET", "/v1/new"), ("PUT", "/v1/memories")):
        with pytest.raises(SettingsError, match=r"NEEDS"):
            guard.need(method, path)


@pytest.mark.unit
def test_what_is_open_holds_no_data() -> None:
    """The list of open routes is short and known: whoever makes it longer has to say so here."""
    known = {"/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs", "/ui", "/ui/{file:path}"}

    assert known == {path for (_, path), need in NEEDS.items() if need == OPEN}
    assert {READ, WRITE, OPERATE} == {need.scope for need in NEEDS.values() if need != OPEN}


async def test_metrics_are_open_where_that_is_asked_for(settings: Settings) -> None:
    """For a scraper that can hold no key."""
    gateway = msgspec.structs.replace(settings.gateway, metrics_open=True)
    settings = msgspec.structs.replace(settings, gateway=gateway)
    make_key(settings)
    async with keyed(settings) as node:
        assert (200, 401) == tuple([(await node.http.get(path)).status_code for path in ("/metrics", "/v1/tiers")])
        assert isinstance(node.gateway, Gateway)
