"""Readers that never stop asking, by id and by likeness; every complete answer goes to the checker."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from typing import Any

import httpx

from producers.events import encode_token
from tests.chaos.checker import Checker
from tests.chaos.producer import vector_of

BATCH = 40  # ids asked for at once
FAVOURITES = 30  # read again and again, so that they get copies in hot
QUESTIONS = 4
SILENT = (429, 503, 504)  # refused with a reason: no evidence of anything


class Readers:
    """`run` asks whoever is at `address` ("" for nobody)."""

    def __init__(self, checker: Checker, ids: int, dice: random.Random) -> None:
        self.checker, self._ids, self._dice = checker, ids, dice
        self.address = ""
        self.refused: Counter[int] = Counter()
        self.failed: list[str] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        async with httpx.AsyncClient(timeout=20) as http:
            while True:
                address = self.address
                if not address:
                    await asyncio.sleep(0.05)
                    continue
                ask = self._dice.choice((self._batch, self._batch, self._one, self._search))
                try:
                    await ask(http, address)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)  # it has just died

    def _some(self, count: int) -> list[str]:
        loved = self._dice.random() < 0.5
        numbers = range(FAVOURITES if loved else self._ids)
        return [f"k/{n}" for n in self._dice.sample(numbers, min(count, len(numbers)))]

    def _wanted(self, ids: list[str]) -> tuple[dict[str, Any], dict[str, int]]:
        """Return `at_least` of all that is acknowledged now, and the events of these ids that it covers; or neither."""
        ledger = self.checker.ledger
        ledger.read()
        if self._dice.random() < 0.5 or not ledger.ends:
            return {}, {}
        token = encode_token({partition: end - 1 for partition, end in ledger.ends.items()}, 0)
        return {"at_least": token}, {i: ledger.newest[i].n for i in ids if i in ledger.newest}

    async def _batch(self, http: httpx.AsyncClient, address: str) -> None:
        ids = self._some(BATCH)
        token, wanted = self._wanted(ids)
        began = time.monotonic()
        answer = self._answer(await http.post(f"{address}/v1/retrieve", json={"ids": ids, **token}))
        if answer is None:
            return
        found = {hit["id"]: hit["payload"]["n"] for hit in answer["hits"]}
        for identifier in ids:
            if identifier in found or answer["complete"]:
                self._seen(identifier, found.get(identifier), began, wanted, "by id")

    async def _one(self, http: httpx.AsyncClient, address: str) -> None:
        [identifier] = self._some(1)
        token, wanted = self._wanted([identifier])
        began = time.monotonic()
        response = await http.get(f"{address}/v1/memories/{identifier}", params=token)
        if response.status_code == 404:
            self._seen(identifier, None, began, wanted, "one")
        elif (answer := self._answer(response)) is not None:
            self._seen(identifier, answer["payload"]["n"], began, wanted, "one")

    async def _search(self, http: httpx.AsyncClient, address: str) -> None:
        ids = self._some(QUESTIONS)
        token, wanted = self._wanted(ids)
        queries = [
            {
                "vector_b64": base64.b64encode(vector_of(identifier, 0).tobytes()).decode(),
                "k": 3,
                "exact": self._dice.random() < 0.5,
                **token,
            }
            for identifier in ids
        ]
        began = time.monotonic()
        answer = self._answer(await http.post(f"{address}/v1/search", json={"queries": queries}))
        if answer is None:
            return
        for identifier, result in zip(ids, answer["results"], strict=True):
            found = {hit["id"]: hit["payload"]["n"] for hit in result["hits"]}
            for other, n in found.items():
                self._seen(other, n, began, wanted if other == identifier else {}, "search")
            if identifier not in found and result["complete"]:
                self._seen(identifier, None, began, wanted, "search")

    def _answer(self, response: httpx.Response) -> dict[str, Any] | None:
        if response.status_code == 200:
            answer: dict[str, Any] = response.json()
            return answer
        self.refused[response.status_code] += 1
        if response.status_code not in SILENT and len(self.failed) < 20:
            self.failed.append(f"{response.status_code} {response.text[:200]}")
        return None

    def _seen(self, identifier: str, n: int | None, began: float, wanted: dict[str, int], how: str) -> None:
        ended = time.monotonic()
        self.checker.ledger.read()
        self.checker.seen(identifier, n, began, ended, asked_for=wanted.get(identifier, -1), how=how)
