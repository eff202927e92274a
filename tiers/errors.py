"""What can go wrong, grouped by what the caller should do about it.

`retriable` on the class says whether the same call may succeed later without anyone's help.
Drivers' errors are translated into these in one place per tier.
"""


class IsothermError(Exception):
    """Root of every error this project raises on purpose."""

    retriable = False


class SettingsError(IsothermError):
    """A setting is unknown or impossible; the message names key, value and reason (exit 2)."""


class LogChanged(SettingsError):
    """The log is not the one that was read so far: only a person can say what is to become of it (exit 2)."""


class ServiceMissing(IsothermError):
    """A service needed at start is not there or not fit; the message names it, its address and the fix (exit 3)."""


class InvalidRecord(IsothermError):
    """An input that can never be applied; `reason` is a stable short code, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TierError(IsothermError):
    """A tier could not do what was asked."""


class TierUnavailable(TierError):
    """The tier's engine did not take the request; nothing was changed, try again later."""

    retriable = True


class TierFull(TierError):
    """The tier is at its limit; nothing was stored. Make room, then try again."""

    retriable = True


class TierCorrupt(TierError):
    """Stored bytes do not match their checksum or shape; they are never served."""


class Fenced(IsothermError):
    """Another owner has raised the partition's epoch (R4a): this process must end at once."""


class OutcomeUnknown(IsothermError):
    """A write was sent and not answered: only a restart, which raises the epoch, makes it safe again (R4)."""


class DeviceLost(IsothermError):
    """The GPU failed, and every later call to it will: the process must end, a restart heals (R1, R9)."""


class LogUnavailable(IsothermError):
    """Kafka did not confirm a message within the deadline; it may be in the log all the same."""

    retriable = True


class LogRefused(LogUnavailable):
    """Kafka does not take this message, and will not take it later."""

    retriable = False


class Replaying(IsothermError):
    """A partition has not reached the end of the log as it was at start; ask again soon (R7)."""

    retriable = True


class NotYet(IsothermError):
    """The asked-for position of the log was not applied within the deadline."""

    retriable = True
