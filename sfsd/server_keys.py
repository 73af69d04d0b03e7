"""The server's keys and signed statement: the files in ROOT/keys.

::

    server.key        the server's long-lived Ed25519 seed; an invitation pins its public key. May
                      be kept elsewhere while the daemon runs: it signs statements only
    server.statement  the current statement: base64 of its bytes, base64 of the signature
    log.key           Ed25519 seed that signs checkpoints
    operator.key      Ed25519 seed with which the operator logs in; operator.pub is the public key
    tls.key tls.crt   PEM; self-signed, or from any certificate authority

A seed is 64 hex digits and a newline. All files have mode 0600. If the TLS certificate has another
key than the statement says, the next start signs a new statement with server.key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from protocol.buffers.file_status import exists
from protocol.codec.errors import CheckpointError, RemoteProtocolError
from protocol.codec.values import Value
from protocol.log import checkpoint
from protocol.log.checkpoint import Verifier, origin_of
from protocol.records.records import ServerStatement, server_id
from protocol.records.signatures import SEED_SIZE, Label, SigningKey, verify_signature
from sfsd.errors import OWNER_HINT, ConfigError
from sfsd.fs.files import Files

_RENEWED_BY = {
    "tls.key": "tls",
    "tls.crt": "tls",
    "log.key": "log",
    "operator.key": "operator",
    "operator.pub": "operator",
}
"""Argument of `sfsd rotate-keys` that makes a file again; tls and log need server.key."""
_HINT = "restore ROOT/keys from a backup; to clients, a new root is another server"
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""No expiry (RFC 5280 section 4.1.2.5): a newer statement ends a key's use, not a date."""
_NEXT_LOG_KEY = "log.key.next"
"""New key of the log while it is being installed."""
_T = TypeVar("_T")


class ServerKeys(Value):
    """Keys of a running daemon; `statement` and `signature` are the exact bytes in a Welcome."""

    folder: Path
    statement: bytes
    signature: bytes
    log_key: SigningKey
    operator_public: bytes
    spki_sha256: bytes
    """SHA-256 of the TLS key's SubjectPublicKeyInfo, 32 bytes, which a login signs."""

    @property
    def server_id(self) -> bytes:
        """Id of the server, 32 bytes, which invitations pin."""
        return server_id(ServerStatement.parse(self.statement).server_pub)

    @property
    def n(self) -> int:
        """Number of the current statement."""
        return ServerStatement.parse(self.statement).n

    @property
    def origin(self) -> str:
        """Origin of the log (C2SP tlog-checkpoint)."""
        return origin_of(self.server_id)

    def tls_context(self) -> ssl.SSLContext:
        """Return a TLS 1.3 context without session tickets: every connection proves the key."""
        return _tls_context(self.folder)


def create(folder: Path, now: int, files: Files | None = None) -> ServerKeys:
    """Make all keys of a new root and its first statement; `now` is Unix seconds.

    Raises `ConfigError` if `folder` is not empty.
    """
    files = files or Files()
    if exists(folder) and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", "each root is one server; choose another")
    files.make_folder(folder)
    for name in ("server.key", "log.key", "operator.key"):
        seed = SigningKey.generate().seed
        files.write_new(folder / name, seed.hex().encode() + b"\n", durable=True)
    operator = _read_key(folder / "operator.key")
    files.write_new(folder / "operator.pub", operator.public.hex().encode() + b"\n", durable=True)
    private, certificate = _self_signed(now)
    files.write_new(folder / "tls.key", private, durable=True)
    files.write_new(folder / "tls.crt", certificate, durable=True)
    _write_statement(folder, files, n=1, now=now)
    files.sync_folder(folder)
    return load(folder)


def load(folder: Path) -> ServerKeys:
    """Load the keys that the current statement names.

    Raises `ConfigError` if a file is missing or malformed, or if the TLS or log key is not the one
    in the statement.
    """
    statement, signature = read_server_statement(folder)
    known = ServerStatement.parse(statement)
    log_key = _read_key(folder / "log.key")
    if Verifier(origin_of(server_id(known.server_pub)), log_key.public).vkey != known.log_vkey:
        raise ConfigError(
            f"{folder.absolute() / 'log.key'} is not the key of the log", _hint_for("log.key")
        )
    spki = _stored_spki(folder)
    if spki not in known.tls_spki_sha256:
        raise ConfigError(
            f"{folder.absolute() / 'tls.crt'} has another key than server.statement there says",
            "reload or restart the daemon, which signs a new statement",
        )
    operator = _read(folder / "operator.pub", _hex32)
    return ServerKeys(folder, statement, signature, log_key, operator, spki)


def readable_by_others(folder: Path) -> list[str]:
    """Return the names of key files that other users of this machine may read.

    A copy may have lost the file modes. Always empty on Windows, which has no such modes.
    """
    if os.name != "posix" or not folder.stat().st_mode & 0o011:
        return []
    keys = (name for name in os.listdir(folder) if name.endswith(".key"))
    return sorted(name for name in keys if (folder / name).stat().st_mode & 0o044)


def update_statement(folder: Path, now: int, files: Files | None = None) -> ServerKeys:
    """Load the keys; first sign a statement for a new TLS key, and install a new log key.

    The caller holds the root's lock. `now` is Unix seconds. Raises `ConfigError`.
    """
    if exists(folder / _NEXT_LOG_KEY):
        _finish_log_key_change(folder, now, files or Files())
    known = ServerStatement.parse(read_server_statement(folder)[0])
    if _stored_spki(folder) not in known.tls_spki_sha256:
        _tls_context(folder)  # fails for a certificate without its key
        _write_statement(folder, files or Files(), n=known.n + 1, now=now)
    return load(folder)


def reload_tls(
    folder: Path, now: int, files: Files | None = None
) -> tuple[ServerKeys, ssl.SSLContext]:
    """Load tls.crt and tls.key for a daemon that runs; first sign a statement for a new TLS key.

    As `update_statement`, but the log key must be the one that the daemon has. Raises `ConfigError`
    before anything is changed.
    """
    tls = _tls_context(folder)
    known = ServerStatement.parse(read_server_statement(folder)[0])
    verifier = Verifier(
        origin_of(server_id(known.server_pub)), _read_key(folder / "log.key").public
    )
    if exists(folder / _NEXT_LOG_KEY) or verifier.vkey != known.log_vkey:
        raise ConfigError(
            f"{folder.absolute() / 'log.key'} was changed", "restart the daemon to use it"
        )
    return update_statement(folder, now, files), tls


def renew_tls_key(folder: Path, now: int, files: Files | None = None) -> ServerKeys:
    """Make a new TLS key and certificate, and a statement that names it. As `update_statement`.

    The key is replaced before the certificate, and the statement last. After a crash in between,
    the old certificate has no key, and the command is run again.
    """
    files = files or Files()
    _server_key(folder)  # fails before anything is replaced
    private, certificate = _self_signed(now)
    files.replace_durable(folder / "tls.key", private)
    files.replace_durable(folder / "tls.crt", certificate)
    return update_statement(folder, now, files)


def renew_log_key(folder: Path, now: int, files: Files | None = None) -> ServerKeys:
    """Make a new log key and a statement that names it, and sign the stored checkpoint with it.

    The caller holds the root's lock. After a crash, `update_statement` continues. Raises
    `ConfigError`.
    """
    files = files or Files()
    _server_key(folder)  # fails before anything is replaced
    seed = SigningKey.generate().seed.hex().encode() + b"\n"
    files.replace_durable(folder / _NEXT_LOG_KEY, seed)
    return update_statement(folder, now, files)


def renew_operator_key(folder: Path, files: Files | None = None) -> None:
    """Make a new key with which the operator's commands log in. The caller holds the root's lock.

    After a crash between both files the commands are refused, and the command is run again.
    """
    files = files or Files()
    key = SigningKey.generate()
    files.replace_durable(folder / "operator.key", key.seed.hex().encode() + b"\n")
    files.replace_durable(folder / "operator.pub", key.public.hex().encode() + b"\n")


def _finish_log_key_change(folder: Path, now: int, files: Files) -> None:
    """Install the new log key: sign the checkpoint, replace the key, sign a statement.

    In this order; steps that are done already are skipped, so a crash may happen anywhere.
    """
    new_key = _read_key(folder / _NEXT_LOG_KEY)
    known = ServerStatement.parse(read_server_statement(folder)[0])
    origin = origin_of(server_id(known.server_pub))
    verifier = Verifier(origin, new_key.public)
    note = folder.parent / "logs" / "checkpoint"
    if exists(note) and verifier.vkey != known.log_vkey:
        _resign_checkpoint(note, Verifier.parse(known.log_vkey), verifier, new_key, files)
    files.replace_durable(folder / "log.key", new_key.seed.hex().encode() + b"\n")
    if verifier.vkey != known.log_vkey:
        _write_statement(folder, files, n=known.n + 1, now=now)
    files.remove(folder / _NEXT_LOG_KEY)
    files.sync_folder(folder)


def _resign_checkpoint(
    note: Path, old: Verifier, new: Verifier, key: SigningKey, files: Files
) -> None:
    data = note.read_bytes()
    if not data.strip(b"\0"):
        return  # zeroed by a power loss; the daemon can start without it
    try:
        signed = checkpoint.verify(data, old)
    except CheckpointError:
        try:
            checkpoint.verify(data, new)  # signed before a crash
        except CheckpointError as exc:
            raise ConfigError("logs/checkpoint is signed by another key", _HINT) from exc
        return
    files.replace_durable(note, checkpoint.sign(key, new.name, signed.size, signed.root))


def _tls_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"cannot load tls.crt and tls.key in {folder.absolute()}: {type(exc).__name__}",
            "both must be PEM without a passphrase, and the certificate must have that key; "
            "`sfsd rotate-keys tls` makes new ones",
        ) from exc
    return context


def operator_key(folder: Path) -> SigningKey:
    """Load the key with which the operator's commands log in. Raises `ConfigError`."""
    return _read_key(folder / "operator.key")


def _write_statement(folder: Path, files: Files, *, n: int, now: int) -> None:
    """Sign and store statement `n` about the keys in `folder`."""
    server = _server_key(folder) if n > 1 else _read_key(folder / "server.key")
    origin = origin_of(server_id(server.public))
    body = ServerStatement(
        server_pub=server.public,
        n=n,
        tls_spki_sha256=(_stored_spki(folder),),
        log_vkey=Verifier(origin, _read_key(folder / "log.key").public).vkey,
        created=now,
    ).encode()
    signature = server.sign(Label.SERVER_STATEMENT, body)
    lines = b"\n".join(map(base64.b64encode, (body, signature))) + b"\n"
    files.replace_durable(folder / "server.statement", lines)


def _server_key(folder: Path) -> SigningKey:
    """Load the key that signs new statements. Raises `ConfigError`."""
    server = _read_key(folder / "server.key")
    if server.public != ServerStatement.parse(read_server_statement(folder)[0]).server_pub:
        raise ConfigError(f"{folder.absolute() / 'server.key'} is not this server's", _HINT)
    return server


def _self_signed(now: int) -> tuple[bytes, bytes]:
    """Make a (private key, certificate) pair in PEM. Clients check the key, not the names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfs")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now, UTC) - timedelta(days=1))
        .not_valid_after(_NEVER)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def spki_sha256(certificate: bytes) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo (RFC 5280) of a DER certificate, 32 bytes.

    Raises ValueError if it is not a certificate or has a key of an unknown kind.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        public = x509.load_der_x509_certificate(certificate).public_key()
    except UnsupportedAlgorithm as exc:
        raise ValueError("a certificate with a key of an unknown kind") from exc
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def _stored_spki(folder: Path) -> bytes:
    return _read(folder / "tls.crt", lambda raw: spki_sha256(_first_certificate(raw)))


def _first_certificate(pem: bytes) -> bytes:
    """Return the first certificate of a PEM chain, which is the server's own, as DER."""
    end = "-----END CERTIFICATE-----"
    head, found, _ = pem.decode("ascii").partition(end)
    start = head.find("-----BEGIN CERTIFICATE-----")
    if start < 0 or not found:
        raise ValueError("no PEM certificate")
    return ssl.PEM_cert_to_DER_cert(head[start:] + end)


def _read_key(path: Path) -> SigningKey:
    return _read(path, lambda raw: SigningKey.from_seed(_hex32(raw)))


def read_server_statement(folder: Path) -> tuple[bytes, bytes]:
    """Load and verify the current statement: (exact bytes, signature). Raises `ConfigError`."""

    def parsed(raw: bytes) -> tuple[bytes, bytes]:
        body, signature = (base64.b64decode(line, validate=True) for line in raw.split())
        verify_signature(
            Label.SERVER_STATEMENT, body, signature, ServerStatement.parse(body).server_pub
        )
        return body, signature

    return _read(folder / "server.statement", parsed)


def _hex32(raw: bytes) -> bytes:
    value = bytes.fromhex(raw.decode("ascii").strip())
    if len(value) != SEED_SIZE:
        raise ValueError("not 32 bytes")
    return value


def _read(path: Path, parse: Callable[[bytes], _T]) -> _T:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError as exc:
        raise ConfigError(f"{path.absolute()} is missing", _hint_for(path.name)) from exc
    except OSError as exc:
        hint = OWNER_HINT if isinstance(exc, PermissionError) else _hint_for(path.name)
        raise ConfigError(f"{path.absolute()} cannot be read: {exc.strerror}", hint) from exc
    except (ValueError, binascii.Error, RemoteProtocolError) as exc:
        # The exception's text may quote the file, which may be a secret.
        raise ConfigError(f"{path.absolute()} is malformed", _hint_for(path.name)) from exc


def _hint_for(name: str) -> str:
    """Return what helps if the file `name` of a key is lost."""
    if name not in _RENEWED_BY:
        return _HINT
    command = f"sfsd rotate-keys {_RENEWED_BY[name]}"
    return f"restore it from a backup; if there is none, `{command}` makes a new one"
