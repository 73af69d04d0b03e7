"""Keys of a root, and the statements signed when the TLS or log key changes."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from protocol.log.checkpoint import Verifier
from protocol.records.records import ServerStatement, server_id
from protocol.records.signatures import Label, SigningKey, verify_signature
from sfsd import server_keys
from sfsd.errors import ConfigError

NOW = 1_800_000_000
FILES = {
    "server.key", "server.statement", "log.key", "operator.key", "operator.pub", "tls.key",
    "tls.crt",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    server_keys.create(tmp_path / "keys", NOW)
    return tmp_path / "keys"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Run a handshake in memory until the client is done. Raises `ssl.SSLError`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (ours, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ours.version() is not None
    return ours


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def replace_tls(
    folder: Path, *, key: ed25519.Ed25519PrivateKey | None = None, with_key: bool = True
) -> bytes:
    """Install a certificate and chain of an authority; return the new certificate as DER.

    Without `key`, the certificate is for the present key.
    """
    old = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    public = old.public_key() if key is None else key.public_key()
    authority = ed25519.Ed25519PrivateKey.generate()
    start = datetime.now(UTC) - timedelta(days=1)

    def certificate(subject: str, own: object) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
            .public_key(own)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=30))
            .sign(authority, None)
        )

    leaf = certificate("files.example", public)
    chain = [leaf, certificate("authority", authority.public_key())]
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    (folder / "tls.crt").write_bytes(b"subject=files.example\n" + pem)
    if key is not None and with_key:
        (folder / "tls.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return leaf.public_bytes(serialization.Encoding.DER)


def test_created_files(folder: Path) -> None:
    keys = server_keys.load(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700
    statement = ServerStatement.parse(keys.statement)
    verify_signature(Label.SERVER_STATEMENT, keys.statement, keys.signature, statement.server_pub)
    assert (statement.n, statement.created) == (1, NOW)
    assert keys.server_id == server_id(statement.server_pub)
    assert keys.origin == f"sfs/{keys.server_id.hex()}"
    assert statement.log_vkey == Verifier(keys.origin, keys.log_key.public).vkey
    assert server_keys.operator_key(folder).public == keys.operator_public
    seeds = {(folder / f"{name}.key").read_text() for name in ("server", "log", "operator")}
    assert len(seeds) == 3


def test_two_roots_are_two_servers(tmp_path: Path) -> None:
    one, two = (server_keys.create(tmp_path / name, NOW) for name in ("one", "two"))
    assert one.server_id != two.server_id
    assert one.spki_sha256 != two.spki_sha256


def test_keys_are_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError):
        server_keys.create(folder, NOW)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_tls_uses_the_key_of_the_statement(folder: Path) -> None:
    keys = server_keys.load(folder)
    session = handshake(keys.tls_context(), trusting())
    shown = session.getpeercert(binary_form=True)
    assert shown is not None
    assert server_keys.spki_sha256(shown) == keys.spki_sha256
    assert session.version() == "TLSv1.3"
    assert keys.tls_context().num_tickets == 0


def test_older_tls_is_refused(folder: Path) -> None:
    client = trusting()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(server_keys.load(folder).tls_context(), client)


def test_the_certificate_does_not_expire(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    assert certificate.not_valid_after_utc.year == 9999
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)


def test_certificate_for_the_same_key_needs_no_statement(folder: Path) -> None:
    before = server_keys.load(folder)
    replace_tls(folder)
    assert server_keys.update_statement(folder, NOW + 5).statement == before.statement
    shown = handshake(before.tls_context(), trusting()).getpeercert()
    assert shown == {}, "not verified, so not shown parsed"


def test_certificate_for_another_key_gets_a_statement(folder: Path) -> None:
    before = server_keys.load(folder)
    shown = replace_tls(folder, key=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError):
        server_keys.load(folder)
    after = server_keys.update_statement(folder, NOW + 5)
    statement = ServerStatement.parse(after.statement)
    assert (statement.n, statement.created) == (2, NOW + 5)
    assert after.server_id == before.server_id
    assert after.spki_sha256 == server_keys.spki_sha256(shown)
    assert after.spki_sha256 != before.spki_sha256
    assert server_keys.update_statement(folder, NOW + 9).statement == after.statement
    handshake(after.tls_context(), trusting())


def test_other_log_key_is_refused(folder: Path) -> None:
    before = (folder / "server.statement").read_bytes()
    (folder / "log.key").write_text(SigningKey.generate().seed.hex())
    with pytest.raises(ConfigError) as caught:
        server_keys.update_statement(folder, NOW)
    assert "log.key" in caught.value.cause
    assert (folder / "server.statement").read_bytes() == before


def test_certificate_without_its_key_gets_no_statement(folder: Path) -> None:
    before = (folder / "server.statement").read_bytes()
    replace_tls(folder, key=ed25519.Ed25519PrivateKey.generate(), with_key=False)
    with pytest.raises(ConfigError):
        server_keys.update_statement(folder, NOW)
    assert (folder / "server.statement").read_bytes() == before


def test_the_server_key_may_be_elsewhere(folder: Path) -> None:
    before = server_keys.load(folder)
    (folder / "server.key").unlink()
    assert server_keys.update_statement(folder, NOW).statement == before.statement
    replace_tls(folder, key=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError):
        server_keys.update_statement(folder, NOW)


def test_key_of_another_server_signs_no_statement(folder: Path) -> None:
    (folder / "server.key").write_text(SigningKey.generate().seed.hex())
    replace_tls(folder, key=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError):
        server_keys.update_statement(folder, NOW)


@pytest.mark.parametrize("name", sorted(FILES - {"server.key", "operator.key", "tls.key"}))
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"secret-rubbish", b"00" * 33])
def test_malformed_file_is_named_and_not_quoted(
    folder: Path, name: str, content: bytes | None
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        server_keys.load(folder)
    assert name in caught.value.cause
    assert "rubbish" not in caught.value.cause
    assert caught.value.hint


@pytest.mark.parametrize("name", ["operator.key", "tls.key"])
def test_keys_that_are_loaded_on_use(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"secret-rubbish")
    keys = server_keys.load(folder)
    with pytest.raises(ConfigError) as caught:
        _ = server_keys.operator_key(folder) if name == "operator.key" else keys.tls_context()
    assert "rubbish" not in str(caught.value)


def test_statement_is_verified_on_load(folder: Path) -> None:
    lines = (folder / "server.statement").read_bytes().split()
    (folder / "server.statement").write_bytes(lines[0] + b"\n" + lines[1][:-8] + b"AAAAAA==\n")
    with pytest.raises(ConfigError):
        server_keys.load(folder)


@pytest.mark.parametrize("left", [b"", bytes(200)])
def test_log_key_is_replaced_without_a_checkpoint(folder: Path, left: bytes) -> None:
    """After a power loss, the daemon must start without one."""
    before = server_keys.load(folder)
    logs = folder.parent / "logs"
    logs.mkdir()
    (logs / "checkpoint").write_bytes(left)
    after = server_keys.renew_log_key(folder, NOW + 5)
    assert (after.n, after.log_key.public != before.log_key.public) == (2, True)
    assert server_keys.update_statement(folder, NOW + 9).statement == after.statement


@pytest.mark.parametrize("renew", [server_keys.renew_log_key, server_keys.renew_tls_key])
def test_nothing_is_replaced_without_the_server_key(
    folder: Path, renew: Callable[[Path, int], server_keys.ServerKeys]
) -> None:
    """Otherwise the next start would need the server key too."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for other in (None, SigningKey.generate().seed.hex()):
        (folder / "server.key").unlink(missing_ok=True)
        if other is not None:
            (folder / "server.key").write_text(other)
        with pytest.raises(ConfigError, match=r"server\.key"):
            renew(folder, NOW + 5)
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {**left, "server.key": before["server.key"]} == before
        server_keys.update_statement(folder, NOW + 9).tls_context()


def test_certificate_with_an_unknown_kind_of_key(folder: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((folder / "tls.crt").read_text())
    known, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
    assert known in der
    with pytest.raises(ValueError, match="kind"):
        server_keys.spki_sha256(der.replace(known, unknown))


@pytest.mark.skipif(os.name != "posix", reason="rights of another kind")
def test_key_files_readable_by_others(folder: Path) -> None:
    assert server_keys.readable_by_others(folder) == []
    (folder / "log.key").chmod(0o644)
    (folder / "tls.key").chmod(0o640)
    (folder / "tls.crt").chmod(0o644)
    assert server_keys.readable_by_others(folder) == []  # nobody gets into the folder
    folder.chmod(0o755)
    assert server_keys.readable_by_others(folder) == ["log.key", "tls.key"]
