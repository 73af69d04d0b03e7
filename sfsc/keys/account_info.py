"""Public description of the account that a keyring belongs to."""

from __future__ import annotations

from protocol.codec.values import Value
from protocol.records.invitation import AccountLink, parse_address
from sfsc.errors import KeyringMissing
from sfsc.keys.keyring import GenerationKeys, Keyring


class Whoami(Value):
    """The account of a keyring. `server_id` and `fingerprint` (hash of the first statement): 32
    bytes."""

    user: str
    address: str
    server_id: bytes
    fingerprint: bytes
    generation: int
    key_type: str

    @property
    def words(self) -> list[str]:
        """The fingerprint as PGP words, one per byte."""
        from sfsc.keys.pgp_words import pgp_words

        return pgp_words(self.fingerprint)


def describe_account(keyring: Keyring) -> Whoami:
    """Describe the account of a keyring. Raises `KeyringMissing` before the enrolment."""
    current = current_keys(keyring)
    return Whoami(
        user=keyring.user,
        address=keyring.addresses[0],
        server_id=keyring.server_id,
        fingerprint=keyring.first,
        generation=current.generation,
        key_type=current.wrap_alg,
    )


def current_keys(keyring: Keyring) -> GenerationKeys:
    """Return the private keys in use. Raises `KeyringMissing` before the enrolment."""
    if keyring.current is None:
        raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
    return keyring.current


def account_link(keyring: Keyring) -> AccountLink:
    """Return the link of the account, for printed recovery codes and PEM files. It
    holds no secret."""
    host, port = parse_address(keyring.addresses[0])
    return AccountLink(host, port, keyring.user, keyring.server_id, keyring.first)
