"""An agent that remembers: what it is told it keeps, what it is asked it recalls by meaning. No language model needed.

    (echo "Ada drinks tea"; echo "What does Ada drink?") | python examples/remembering_agent.py

A line that ends in a question mark is a question: the nearest memories are what a language model would be given to
answer from; here they are the answer. Everything else is remembered. The node needs an embedder, as `isotherm up` has.
"""

import argparse
import asyncio
import sys
import uuid

from pipeline.client import AsyncClient, Refused, ServiceMissing

NEAR = 0.3  # a score below this is another subject


class Agent:
    """Remembers under a name; what it remembered is seen by its next question (`at_least`)."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client, self._name = client, name
        self._token: str | None = None

    async def hear(self, line: str) -> str:
        """Return what the agent says to a line."""
        if line.endswith("?"):
            return await self._recall(line)
        await self._remember(line)
        return "I will remember that."

    async def _remember(self, text: str) -> None:
        identifier = f"{self._name}/{uuid.uuid4()}"
        self._token = await self._client.publish(identifier, text=text, payload={"text": text})

    async def _recall(self, question: str) -> str:
        found = await self._client.search(
            text=question, k=3, filter=f"id LIKE '{self._name}/%'", include=["payload"], at_least=self._token
        )
        near = [hit for hit in found.hits if (hit.score or 0) >= NEAR]
        if not near:
            return "I know nothing about that." if found.complete else "I could not look everywhere; ask me again."
        return "; ".join(f"{hit.payload['text']} ({hit.score:.2f}, {hit.tier})" for hit in near)


async def main(url: str, name: str) -> None:
    """Read lines until there are none."""
    async with AsyncClient(url) as client:
        agent = Agent(client, name)
        for line in sys.stdin:
            if line := line.strip():
                print(f"> {line}\n{await agent.hear(line)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--name", default="agent", help="whose memories these are: the namespace of their ids")
    given = parser.parse_args()
    try:
        asyncio.run(main(given.url, given.name))
    except (ServiceMissing, Refused) as error:
        sys.exit(str(error))
