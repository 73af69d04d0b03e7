"""Reads the settings and the TLS certificate again while the daemon serves (SIGHUP).

Everything is read and checked before anything changes: after an error the daemon goes on as it is.
"""

from __future__ import annotations

import ssl

from protocol.codec.values import Value
from sfsd import server_keys
from sfsd.datadir import log_statement
from sfsd.fs.files import Files
from sfsd.rules.context import ServerContext, ServerIdentity
from sfsd.settings.config import Config, settings


class Reloaded(Value):
    """Result of a reload: the settings as they apply now, the TLS context, the server's identity.

    `changes` are the settings with new values, and `postponed` those that need a restart: `config`
    has their old values. `has_new_key` says that the certificate has another key.
    """

    config: Config
    tls: ssl.SSLContext
    identity: ServerIdentity
    changes: tuple[str, ...]
    postponed: tuple[str, ...]
    has_new_key: bool


def read_again(context: ServerContext) -> Reloaded:
    """Read the settings and the TLS certificate of a root that is served. Waits for the disk.

    If the certificate has a new key, a statement about it is signed and logged. Raises `SfsdError`
    and OSError if something cannot be used; then nothing was changed.
    """
    present, config = context.config, Config.load(context.root)
    changes = [name for name in settings() if config.get(name) != present.get(name)]
    postponed = [name for name in changes if not settings()[name].reload]
    for name in postponed:
        config = config.with_value(name, present.get(name))
    keys, tls = server_keys.reload_tls(
        context.root / "keys", context.now, Files.below(context.root)
    )
    identity = ServerIdentity.parse(
        keys.statement, keys.signature, keys.spki_sha256, keys.operator_public
    )
    has_new_key = identity.spki_sha256 != context.identity.spki_sha256
    if has_new_key:
        log_statement(context, keys)
    return Reloaded(
        config,
        tls,
        identity,
        tuple(name for name in changes if name not in postponed),
        tuple(postponed),
        has_new_key,
    )
