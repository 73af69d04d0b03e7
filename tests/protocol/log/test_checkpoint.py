from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import CheckpointError
from protocol.log import checkpoint
from protocol.log.checkpoint import Checkpoint, Verifier
from protocol.records.signatures import SigningKey

# Key and note of the tests of golang.org/x/mod/sumdb/note.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_SIGNATURE = (
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
)
SUMDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"

KEY = SigningKey.from_seed(bytes(range(32)))
ORIGIN = checkpoint.origin_of(b"\xab" * 32)
LOG = Verifier(ORIGIN, KEY.public)
ROOT = bytes(range(100, 132))
NOTE = checkpoint.sign(KEY, ORIGIN, 1234, ROOT)
TEXT, SIGNATURE = NOTE.decode().split("\n\n")


def refuse(note: bytes | str, verifier: Verifier = LOG) -> None:
    with pytest.raises(CheckpointError):
        checkpoint.verify(note.encode() if isinstance(note, str) else note, verifier)


def signed(text: str) -> str:
    """Return a note with any text and a valid signature."""
    blob = base64.b64encode(LOG.key_id + KEY.sign_note(text.encode())).decode()
    return f"{text}\n— {ORIGIN} {blob}\n"


@pytest.mark.parametrize("vkey", [PETER, SUMDB])
def test_published_keys_parse_and_print(vkey: str) -> None:
    verifier = Verifier.parse(vkey)
    assert verifier.vkey == vkey
    assert verifier.name == vkey.split("+", maxsplit=1)[0]
    assert verifier.key_id.hex() == vkey.split("+")[1]


def test_published_signature_is_reproduced() -> None:
    key = SigningKey.from_seed(PETER_SEED)
    verifier = Verifier("PeterNeumann", key.public)
    assert verifier.vkey == PETER
    blob = verifier.key_id + key.sign_note(PETER_TEXT.encode())
    assert base64.b64encode(blob).decode() == PETER_SIGNATURE
    # Its signature is valid, so it is refused only because it is not a checkpoint.
    note = f"{PETER_TEXT}\n— PeterNeumann {PETER_SIGNATURE}\n"
    with pytest.raises(CheckpointError, match="malformed"):
        checkpoint.verify(note.encode(), verifier)
    with pytest.raises(CheckpointError, match="does not verify"):
        checkpoint.verify(note.replace("answer", "Answer").encode(), verifier)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+c74f20a3",
        PETER[:-4],
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("PeterNeumann", ""),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        PETER.replace("PeterNeumann", "PeterNeumanm"),
        Verifier("Peter\x1b[2JNeumann", SigningKey.from_seed(PETER_SEED).public).vkey,
        Verifier("Peter\x9bNeumann", SigningKey.from_seed(PETER_SEED).public).vkey,
        Verifier("PeterNeumann", bytes([1]) + bytes(31)).vkey,  # the point of order 1
        Verifier("PeterNeumann", bytes([2]) + bytes(31)).vkey,  # no point of the curve
        PETER.replace("+AR", "+BR"),  # another algorithm
        PETER.replace("10TW", "10T="),
        PETER + "\n",
        PETER + "=",
    ],
)
def test_mangled_keys_are_refused(vkey: str) -> None:
    with pytest.raises(CheckpointError):
        Verifier.parse(vkey)


def test_the_text_matches_the_specification() -> None:
    assert f"sfs/{'ab' * 32}\n1234\n{base64.b64encode(ROOT).decode()}" == TEXT
    assert SIGNATURE.startswith(f"— sfs/{'ab' * 32} ")
    assert SIGNATURE.endswith("\n")
    assert checkpoint.verify(NOTE, LOG) == Checkpoint(ORIGIN, 1234, ROOT)


@given(st.integers(0, 10**16 - 1), st.binary(min_size=32, max_size=32))
def test_round_trip(size: int, root: bytes) -> None:
    note = checkpoint.sign(KEY, ORIGIN, size, root)
    assert len(note) <= checkpoint.MAX_CHECKPOINT
    assert checkpoint.verify(note, LOG) == Checkpoint(ORIGIN, size, root)


def test_every_flipped_bit_is_refused() -> None:
    for at in range(len(NOTE)):
        for bit in range(8):
            refuse(NOTE[:at] + bytes([NOTE[at] ^ 1 << bit]) + NOTE[at + 1 :])


def test_every_cut_is_refused() -> None:
    for at in range(len(NOTE)):
        refuse(NOTE[:at])
        refuse(NOTE[at + 1 :])


def test_another_log_or_key_is_refused() -> None:
    other = SigningKey.generate()
    refuse(NOTE, Verifier(ORIGIN, other.public))
    refuse(NOTE, Verifier(checkpoint.origin_of(bytes(32)), KEY.public))
    refuse(checkpoint.sign(other, ORIGIN, 1234, ROOT))
    refuse(signed(TEXT.replace("ab", "ac") + "\n"))  # our key, our name, another origin


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("1234", "01234"),
        TEXT.replace("1234", "+1234"),
        TEXT.replace("1234", "-1"),
        TEXT.replace("1234", "1" + "0" * 16),
        TEXT.replace("1234", "١٢"),  # decimal digits, but not ASCII
        TEXT.replace("1234", ""),
        TEXT[:-4],
        TEXT[:-1],
        TEXT.rpartition("\n")[0],
        "\n" + TEXT,
    ],
)
def test_malformed_signed_text_is_refused(text: str) -> None:
    checkpoint.verify(signed(TEXT + "\n").encode(), LOG)
    refuse(signed(text + "\n"))


def test_signatures_of_other_keys_are_ignored() -> None:
    witness = "— witness.example/w " + base64.b64encode(bytes(76)).decode() + "\n"
    same_name = f"— {ORIGIN} " + base64.b64encode(b"\0" * 68).decode() + "\n"
    same_id = "— other " + base64.b64encode(LOG.key_id + bytes(64)).decode() + "\n"
    for before, after in [(witness, ""), ("", witness), (same_name, same_id)]:
        note = f"{TEXT}\n\n{before}{SIGNATURE}{after}"
        assert checkpoint.verify(note.encode(), LOG).size == 1234
    refuse(f"{TEXT}\n\n{witness}")
    refuse(f"{TEXT}\n\n{same_name}{same_id}")


def test_a_signature_of_no_byte_is_refused_whoever_made_it() -> None:
    for size, valid in ((3, False), (4, False), (5, True)):
        line = f"— other {base64.b64encode(bytes(size)).decode()}\n"
        if valid:
            checkpoint.verify(NOTE + line.encode(), LOG)
        else:
            refuse(NOTE + line.encode())


def test_every_signature_by_the_key_must_verify() -> None:
    bad = f"— {ORIGIN} " + base64.b64encode(LOG.key_id + bytes(64)).decode() + "\n"
    refuse(f"{TEXT}\n\n{SIGNATURE}{bad}")
    refuse(f"{TEXT}\n\n{bad}{SIGNATURE}")


@pytest.mark.parametrize(
    "line",
    [
        *("\n", "witness AAAA\n", "— witness\n", "— witness ????\n", "-- witness AAAA\n"),
        *("—  AAAA\n", "— wit+ness AAAAAAAA\n", "— wit\u00a0ness AAAAAAAA\n"),
        *("— wit\x1b[2Jness AAAAAAAA\n", "— wit\x9bness AAAAAAAA\n", "— witness AAAAAAAA\r\n"),
    ],
)
def test_a_malformed_signature_line_is_refused(line: str) -> None:
    refuse(f"{TEXT}\n\n{SIGNATURE}{line}")
    refuse(f"{TEXT}\n\n{line}{SIGNATURE}")


@pytest.mark.parametrize("character", ["\0", "\t", "\r", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_are_refused_although_they_are_signed(character: str) -> None:
    checkpoint.verify(signed(f"{TEXT}\nmore\n").encode(), LOG)
    refuse(signed(f"{TEXT}\nmo{character}re\n"))
    refuse(signed(f"{TEXT}{character}\n"))


def cosignature(number: int, size: int) -> str:
    """Return a line of a witness whose signature has `size` bytes after the key id."""
    blob = base64.b64encode(bytes([number]) * (4 + size)).decode()
    return f"— witness{number}.example.org/w {blob}\n"


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 72), (3, 72), (15, 72), (63, 72), (1, 2428), (2, 2428), (15, 2428), (38, 2428)],
)
def test_cosignatures_are_read_past_and_left_out(count: int, size: int) -> None:
    """A signature of cosignature/v1 has 72 bytes, one of ML-DSA-44 with its time has 2,428."""
    lines = [cosignature(number, size) for number in range(count)]
    for place in (0, count // 2, count):
        note = f"{TEXT}\n\n{''.join([*lines[:place], SIGNATURE, *lines[place:]])}".encode()
        read, own = checkpoint.verify_own(note, LOG)
        assert read == Checkpoint(ORIGIN, 1234, ROOT)
        assert own == NOTE


def test_caps() -> None:
    line = "— w AAAAAAAA\n"
    assert checkpoint.verify(f"{TEXT}\n\n{SIGNATURE}{line * 63}".encode(), LOG).size == 1234
    refuse(f"{TEXT}\n\n{SIGNATURE}{line * 64}")
    fits = checkpoint.MAX_NOTE - len(NOTE) - len("— w \n".encode())
    longest = f"{TEXT}\n\n{SIGNATURE}— w {'A' * (fits // 4 * 4)}\n"
    assert checkpoint.verify(longest.encode(), LOG).size == 1234
    refuse(f"{TEXT}\n\n{SIGNATURE}— w {'A' * (fits // 4 * 4 + 4)}\n")
    checkpoint.verify(signed(f"{TEXT}\n{'x' * 3000}\n").encode(), LOG)
    refuse(signed(f"{TEXT}\n{'x' * 4000}\n"))  # the log's own signature covers too much to keep
    refuse(b"\xff" + NOTE)
    refuse(b"")


def test_a_signature_twice_is_kept_once() -> None:
    note = f"{TEXT}\n\n{SIGNATURE}{SIGNATURE}".encode()
    assert checkpoint.verify_own(note, LOG)[1] == NOTE


@given(st.text("019 _-+٣²\n", max_size=18))
def test_sizes_are_plain_numbers(text: str) -> None:
    expected = re.fullmatch(r"0|[1-9][0-9]{0,15}", text) is not None
    assert checkpoint.is_size(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("0", True), ("00", False), ("9" * 16, True), ("9" * 17, False), ("٣", False)],
)
def test_the_longest_size(text: str, expected: bool) -> None:
    assert checkpoint.is_size(text) is expected
