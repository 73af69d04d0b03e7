from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsd.errors import PackError
from sfsd.fs.files import Files
from sfsd.storage import packs
from sfsd.storage.packs import Member

# One member inside the pack and one in a file of its own, byte for byte.
DIGEST, BLOB = bytes(range(32)), "ab" * 16
EXAMPLE = (
    b"sfs-pack" + b"\x00\x01" + b"\x00\x00\x00\x02" + b"\x00\x00\x00\x6b"
    + b"\x00" + DIGEST + b"\x00\x00\x00\x00\x00\x00\x00\x02" + b"\x03" + b"a/b"
    + b"\x01" + DIGEST + b"\x00\x00\x00\x00\x00\x00\x00\x00" + b"\x04" + b"c.ct" + b"\xab" * 16
    + bytes.fromhex("f659339d7fcfa8dc9792a789d96e72954cc5ce366bbbefc3629e78101db4ef89")
    + b"hi"
)  # fmt: skip

members = st.builds(
    lambda parts, digest, data, blob: (
        Member("/".join(parts), digest, 0 if blob else len(data), blob=blob),
        b"" if blob else data,
    ),
    st.lists(st.text("abz019", min_size=1, max_size=30), min_size=1, max_size=8),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=100),
    st.none() | st.binary(min_size=16, max_size=16).map(bytes.hex),
)


def read(path: Path) -> list[tuple[Member, bytes]]:
    """Return the members of a pack with their contents."""
    files = Files()
    handle = files.open_read(path)
    try:
        return [
            (member, b"" if member.blob else files.read_exactly(handle, member.size, member.offset))
            for member in packs.read_index(files, handle)
        ]
    finally:
        files.close(handle)


def test_the_bytes_of_a_pack(tmp_path: Path) -> None:
    given_members = [
        (Member("a/b", DIGEST, 2), b"hi"),
        (Member("c.ct", DIGEST, 0, blob=BLOB), b""),
    ]
    assert packs.encode(given_members) == EXAMPLE
    (tmp_path / "pack").write_bytes(EXAMPLE)
    assert read(tmp_path / "pack") == [
        (Member("a/b", DIGEST, 2, offset=len(EXAMPLE) - 2), b"hi"),
        (Member("c.ct", DIGEST, 0, blob=BLOB), b""),
    ]


@given(given_members=st.lists(members, max_size=12))
def test_a_pack_round_trips(
    tmp_path_factory: pytest.TempPathFactory, given_members: list[tuple[Member, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pack"
    path.write_bytes(packs.encode(given_members))
    found = read(path)
    assert [(m.path, m.digest, m.size, m.blob, data) for m, data in found] == [
        (m.path, m.digest, m.size, m.blob, data) for m, data in given_members
    ]


def test_a_pack_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    for end in range(len(EXAMPLE)):
        path.write_bytes(EXAMPLE[:end])
        with pytest.raises(PackError):
            read(path)


def test_a_flipped_bit_before_the_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    for index in range(len(EXAMPLE) - len(b"hi")):
        path.write_bytes(EXAMPLE[:index] + bytes([EXAMPLE[index] ^ 1]) + EXAMPLE[index + 1 :])
        with pytest.raises(PackError):
            read(path)


@pytest.mark.parametrize(
    "member",
    [
        Member("../up", DIGEST, 0),
        Member("A", DIGEST, 0),
        Member("", DIGEST, 0),
    ],
)
def test_an_invalid_path_is_refused(tmp_path: Path, member: Member) -> None:
    (tmp_path / "pack").write_bytes(packs.encode([(member, b"")]))
    with pytest.raises(PackError):
        read(tmp_path / "pack")


def test_a_length_past_the_end_is_refused(tmp_path: Path) -> None:
    for size in (3, 2**64 - 1):
        (tmp_path / "pack").write_bytes(packs.encode([(Member("a", DIGEST, size), b"hi")]))
        with pytest.raises(PackError):
            read(tmp_path / "pack")


def test_limits_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    for count, size in [(packs.MAX_MEMBERS + 1, 0), (0, packs.MAX_INDEX + 1), (0, 2**32 - 1)]:
        path.write_bytes(b"sfs-pack\x00\x01" + count.to_bytes(4, "big") + size.to_bytes(4, "big"))
        with pytest.raises(PackError, match="too many"):
            read(path)
    with pytest.raises(PackError, match="too many"):
        packs.encode([(Member("a", DIGEST, 0), b"")] * (packs.MAX_MEMBERS + 1))
