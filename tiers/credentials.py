"""The credentials of a bucket: from the environment or a file, never from the settings, and never shown."""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass, field
from pathlib import Path

from tiers.errors import ServiceMissing


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials; never shown."""

    access: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(repr=False, default="")

    @classmethod
    def found(cls, file: str) -> Keys:
        """Return the [default] keys of an AWS credentials file, or, where it is "", of the environment."""
        if not file:
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            access, secret, token = (os.environ.get(name, "") for name in names)
        else:
            parser = configparser.ConfigParser(interpolation=None)
            try:
                parser.read_string(Path(file).read_text())
                section = parser["default"]
            except (OSError, KeyError, configparser.Error, UnicodeDecodeError) as error:
                reason = "has no [default] section" if isinstance(error, KeyError) else type(error).__name__
                raise ServiceMissing(f"glacier.credentials_file = {file!r} cannot be read: {reason}") from None
            names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
            access, secret, token = (section.get(name, "") for name in names)
        if not access or not secret:
            raise ServiceMissing(
                f"no S3 credentials: set {names[0]} and {names[1]} in {file or 'the environment'}, "
                "or name a file in glacier.credentials_file"
            )
        return cls(access, secret, token)
