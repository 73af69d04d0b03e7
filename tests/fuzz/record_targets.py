"""Targets for what is signed or logged: records and their signatures, log lines, signed notes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator

import protocol
import sfsc
import sfsd
from protocol.codec import merkle
from protocol.codec.base64text import to_text
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.fields import Struct
from protocol.log import auditlog, checkpoint, tlogproof
from protocol.log.checkpoint import Verifier
from protocol.log.tlogproof import TlogProof
from protocol.records import chain
from protocol.records.invitation import parse_account_link, parse_address, parse_invitation
from protocol.records.public_keys import (
    check_signing_key,
    check_statement_keys,
    check_wrap_key,
)
from protocol.records.record_signatures import verify_record_signature
from protocol.records.records import FileRecord, Statement, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Message
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import SfscError
from sfsc.keys.bundle import SeenCheckpoint
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.trust.followed_log import FollowedLog
from sfsc.trust.server_log import ServerTrust
from sfsd.storage.json_files import parse_sidecar
from tests.fuzz.target import Parser, Stream, Target
from tests.fuzz.wire_targets import samples_of
from tests.fuzz.world import World

_REFUSED = (RemoteProtocolError,)
_HASH_KEY = b',"hash":"'


def stored_structs() -> list[type[Struct]]:
    """Return every struct of the product that has a stored or signed form of its own."""
    for package in (protocol, sfsd, sfsc):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)
    structs = {cls for cls in _subclasses(Struct) if cls.AS_MAP and cls.__struct_fields__}
    return sorted(structs, key=lambda cls: (cls.__module__, cls.__name__))


def _subclasses(cls: type[Struct]) -> Iterator[type[Struct]]:
    for one in cls.__subclasses__():
        if not issubclass(one, Message) and not one.__module__.startswith("tests."):
            yield one
            yield from _subclasses(one)


# --- records --------------------------------------------------------------------------------


def record_targets(world: World) -> list[Target]:
    """Return targets for signed and stored structs, chains, signatures, keys and invitations."""
    known = world.keyring.statements
    records = [body for entry in world.entries for body, _ in entry.records]
    targets: list[Target] = []
    for cls in stored_structs():
        made = [value.encode() for value in samples_of(cls)]
        found = [body for body in records if _parses(cls, body)]
        targets.append(Parser(cls.__name__, made + found[:12], _REFUSED, cls.parse))
    chains = [_next_statement(world, n) for n in range(2, len(known) + 1)]
    wrap_keys = [PrivateKey.generate(alg).public for alg in ("x25519", "xwing")]
    signing_keys = [SigningKey.from_seed(bytes([at]) * 32).public for at in range(8)]
    return [
        *targets,
        *chains,
        Parser("first statement", known[:1], _REFUSED, _check_first(world)),
        Parser("keys of a statement", known, _REFUSED, _check_keys),
        *(
            Parser(f"{key.alg} key", [key.encoded], _REFUSED, _check_wrap_key(key.alg))
            for key in wrap_keys
        ),
        Parser("signing key", signing_keys, _REFUSED, check_signing_key),
        Parser("signature of a record", _signatures(world), _REFUSED, _check_signature(world)),
        _text_target("invitation", world.server.invite("carol"), parse_invitation),
        _text_target("account link", world.link, parse_account_link),
        _text_target("address", "[fe80::1%eth0]:443", parse_address),
    ]


def _parses(cls: type[Struct], body: bytes) -> bool:
    try:
        cls.parse(body)
    except RemoteProtocolError:
        return False
    return True


def _text_target(name: str, text: str, parse: Callable[[str], object]) -> Parser:
    samples = [text.encode(), text.encode() + b"\n"]
    return Parser(name, samples, _REFUSED, lambda data: parse(data.decode(errors="replace")))


def _signers(world: World) -> dict[bytes, SigningKey]:
    """Return ada's signing keys by public key."""
    keys = [SigningKey.from_seed(one.sign_seed) for one in world.generations]
    return {key.public: key for key in keys}


def _check_first(world: World) -> Callable[[bytes], object]:
    """Return a check of a changed first statement, signed again by its key."""
    key = _signers(world)[Statement.parse(world.keyring.statements[0]).sign_pub]
    return lambda body: chain.check_first(body, (key.sign(Label.STATEMENT, body),))


def _next_statement(world: World, n: int) -> Parser:
    """Return a target for statement `n`, signed again by the keys that signed it."""
    before, body = world.keyring.statements[: n - 1], world.keyring.statements[n - 1]
    signers = _signers(world)
    own = signers[Statement.parse(body).sign_pub]
    previous = signers[Statement.parse(before[-1]).sign_pub]
    keys = (own,) if own.public == previous.public else (own, previous)
    code = RecoveryCode.parse(world.code).signing_key
    introduced = chain.introduces_recovery_key(Statement.parse(before[-1]), Statement.parse(body))

    def check(changed: bytes) -> None:
        signatures = tuple(key.sign(Label.STATEMENT, changed) for key in keys)
        possession = code.sign(Label.RECOVERY_POSSESSION, changed) if introduced else b""
        chain.check_next(before, changed, signatures, possession)

    return Parser(f"statement {n}", [body], _REFUSED, check)


def _check_keys(body: bytes) -> None:
    check_statement_keys(Statement.parse(body))


def _check_wrap_key(algorithm: str) -> Callable[[bytes], object]:
    # The function without its cache: it would be full of changed keys.
    return lambda public: check_wrap_key.__wrapped__(algorithm, public)


def _signed_records(world: World) -> list[tuple[bytes, bytes, int]]:
    """Return (record, packed signature, generation) of stored records."""
    sidecars = [parse_sidecar("", raw) for raw in world.stored("ada/files/*/*.json")]
    return [
        (one.content.record, signature.signature, signature.generation)
        for one in sidecars
        for signature in one.content.signatures
    ]


def _signatures(world: World) -> list[bytes]:
    return [packed for _, packed, _ in _signed_records(world)]


def _check_signature(world: World) -> Callable[[bytes], object]:
    body, _, generation = _signed_records(world)[0]
    first, record = world.keyring.statements[0], FileRecord.parse(body)
    return lambda packed: verify_record_signature(
        Label.RECORDS,
        packed,
        record_hash(body),
        Statement.parse(first).sign_pub,
        server=record.server,
        owner_first=record_hash(first),
        generation=generation,
    )


# --- lines ----------------------------------------------------------------------------------


def line_targets(world: World) -> list[Target]:
    """Return targets for log lines, leaves and proofs."""
    lines, entries = world.lines, world.entries
    hashes = [merkle.leaf_hash(entry.leaf_data) for entry in entries]
    note = world.server.sign_note(len(lines), merkle.root(hashes))
    proofs = [
        TlogProof(
            seq,
            line,
            merkle.inclusion_proof(
                seq,
                len(lines),
                lambda level, index: merkle.root(hashes[index << level : (index + 1) << level]),
            ),
            note,
        ).encode()
        for seq, line in enumerate(lines)
    ]
    verifier = Verifier.parse(world.vkey)
    leaves = [len(entry.leaf_data).to_bytes(2) + entry.leaf_data for entry in entries]
    return [
        Parser("line", lines, _REFUSED, auditlog.parse),
        Parser("line with its hash", lines, _REFUSED, _parse_line, _rehashed),
        Parser("leaf of a line", lines, _REFUSED, auditlog.leaf_data, _rehashed),
        Parser("lines", [b"\n".join(lines[:9])], _REFUSED, _verify_chain),
        Parser("proof", proofs, _REFUSED, lambda data: _verify_proof(data, verifier)),
        Stream("leaves", leaves, (SfscError,), lambda: _leaf_reader(world)),
        Parser("own lines", lines, (SfscError,), _own_line(world), _rehashed),
    ]


def _rehashed(line: bytes) -> bytes:
    """Return a changed line with the hash that it should state."""
    body = line[: line.rfind(_HASH_KEY)]
    return body + _HASH_KEY + hashlib.sha256(body).hexdigest().encode() + b'"}'


def _parse_line(line: bytes) -> None:
    """Parse a line; what is accepted must have the leaf that is made without parsing."""
    entry = auditlog.parse(line)
    if entry.leaf_data != auditlog.leaf_data(line):
        raise AssertionError("a line has two leaves")
    if auditlog.paths_of(line) != entry.paths:
        raise AssertionError("a line has two lists of paths")
    list(entry.records)


def _verify_chain(data: bytes) -> None:
    list(auditlog.verify_chain(data.split(b"\n")))


def _verify_proof(data: bytes, verifier: Verifier) -> None:
    proof = TlogProof.parse(data)
    if proof.encode() != data:
        raise AssertionError("a proof has two forms")
    tlogproof.verify(proof, verifier)


def _log_of(world: World) -> FollowedLog:
    keyring = world.keyring
    return FollowedLog(keyring.server_id, keyring.user, keyring.first, keyring.tag_key)


def _leaf_reader(world: World) -> Callable[[bytes], object]:
    """Return a function that follows the log by pages of leaves."""
    log = _log_of(world)
    log.watch_contact(bytes(32), 0)
    return lambda page: log.add_leaves(log.size, page)


def _own_line(world: World) -> Callable[[bytes], object]:
    """Return a check that follows the log with one line changed, and its leaf with it."""
    lines = world.lines
    own = next(at for at, entry in enumerate(world.entries) if entry.op == "enrol")

    def check(line: bytes) -> None:
        seq, leaves = own, [auditlog.leaf_data(one) for one in lines]
        with contextlib.suppress(RemoteProtocolError):
            leaves[own] = auditlog.leaf_data(line)
            seq = auditlog.parse(line).seq % len(lines)
            leaves = [auditlog.leaf_data(one) for one in lines]
            leaves[seq] = auditlog.leaf_data(line)
        log = _log_of(world)
        shown = [*lines[:seq], line, *lines[seq + 1 :]]
        log.add_leaves(0, b"".join(len(one).to_bytes(2) + one for one in leaves))
        while wanted := log.wanted_lines(256):
            log.add_lines([(one, shown[one]) for one in wanted])
        log.confirm(log.size, merkle.root([merkle.leaf_hash(one) for one in leaves]))

    return check


# --- notes ----------------------------------------------------------------------------------


def note_targets(world: World) -> list[Target]:
    """Return targets for signed notes, and for what names and carries them."""
    keys = world.server.keys
    notes = [world.server.sign_note(size, bytes([size]) * 32) for size in (0, 1, 200)]
    other = SigningKey.from_seed(bytes(32))
    witnesses = b"".join(_signature_line(other, note) for note in notes * 21)
    notes.append(notes[-1] + witnesses)
    verifier = Verifier.parse(world.vkey)
    statement, signature = keys.statement, keys.signature
    trust = ServerTrust(world.keyring.server_id, statement=statement, signature=signature)
    seen = [SeenCheckpoint(note, statement, signature).encode() for note in notes[:3]]
    return [
        Parser("note", notes, _REFUSED, checkpoint.read),
        Parser("note of the log", notes, _REFUSED, lambda note: _verify_own(note, verifier)),
        Parser("signed note", notes, _REFUSED, lambda note: _signed_again(world, note, verifier)),
        _text_target("verification key", verifier.vkey, Verifier.parse),
        Parser(
            "checkpoint in a bundle",
            seen,
            (*_REFUSED, SfscError),
            lambda body: trust.verify_seen(SeenCheckpoint.parse(body)),
        ),
    ]


def _signature_line(key: SigningKey, note: bytes) -> bytes:
    """Return the last line of a note, by another key."""
    return checkpoint.sign(key, "witness", 0, note[:32].ljust(32)).split(b"\n\n")[1]


def _verify_own(note: bytes, verifier: Verifier) -> None:
    """Verify a note; what is kept of it must verify as well."""
    found, own = checkpoint.verify_own(note, verifier)
    if checkpoint.verify_own(own, verifier) != (found, own):
        raise AssertionError("the kept part of a note says something else")


def _signed_again(world: World, note: bytes, verifier: Verifier) -> None:
    """Verify a note whose changed text the log's key has signed."""
    text = note.partition(b"\n\n")[0] + b"\n"
    blob = verifier.key_id + world.server.keys.log_key.sign_note(text)
    line = f"\n— {verifier.name} {to_text(blob)}\n"
    _verify_own(text + line.encode(), verifier)
