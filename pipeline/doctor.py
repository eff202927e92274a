"""`isotherm doctor`: what is wrong with the machine, the services and the settings, and what to do about each.

A check looks and changes nothing that lasts; it works while a node runs and while none does. Each returns findings: ok,
warning (it works, until it does not) or error (a node will not start, or not keep what it promises). A check that fails
in a way that nobody foresaw, or takes too long, is an error too; the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from pipeline import doctor_kafka, doctor_machine, doctor_stores
from pipeline.doctor_finding import Finding, Level
from pipeline.settings import Settings
from tiers.errors import IsothermError

CHECK_S = 20.0


class Check(NamedTuple):
    """One thing looked at."""

    name: str
    look: Callable[[Settings], Awaitable[list[Finding]]]


CHECKS = (
    Check("packages", doctor_machine.packages),
    Check("data", doctor_machine.data),
    Check("memory", doctor_machine.memory),
    Check("open files", doctor_machine.open_files),
    Check("hot", doctor_machine.device),
    Check("embedder", doctor_machine.embedder),
    Check("gateway", doctor_machine.gateway),
    Check("kafka", doctor_kafka.kafka),
    Check("warm", doctor_stores.warm),
    Check("cold", doctor_stores.cold),
    Check("glacier", doctor_stores.glacier),
)


async def examine(settings: Settings, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return the findings of all checks, in their order."""
    found = await asyncio.gather(*(_one(check, settings) for check in checks))
    return [finding for each in found for finding in each]


async def _one(check: Check, settings: Settings) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check.look(settings)
    except TimeoutError:
        return [Finding.error(check.name, f"no answer within {CHECK_S:g} s", "see whether it hangs", unreachable=True)]
    except IsothermError as error:
        return [Finding.error(check.name, str(error))]
    except Exception as error:  # noqa: BLE001 - the doctor outlives what it looks at, and says so
        return [Finding.error(check.name, f"the check itself failed: {error!r}", "tell us, with this line")]


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 without an error, 3 when a service is not reachable, else 1."""
    errors = [finding for finding in findings if finding.level is Level.ERROR]
    return 0 if not errors else 3 if any(finding.unreachable for finding in errors) else 1
