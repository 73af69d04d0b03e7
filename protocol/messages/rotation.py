"""A user's own identity chain: its next statement, and the bundle that goes with the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from protocol.fields import AtMost, Signature
from protocol.messages.base import MAX_BUNDLE, Done, RecordBytes, Reply, Request, message

BundleBytes = Annotated[bytes, AtMost(MAX_BUNDLE)]


@message(128)
@dataclass(frozen=True, slots=True)
class NewStatement(Request):
    """The asker's next statement (of a reason that keeps the generation), and its bundle.

    `signatures` has the own key's first. The same bytes again get the same receipt; where the chain
    has grown meanwhile the answer is `conflict`, and `Lookup` shows by what.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes


@message(131)
@dataclass(frozen=True, slots=True)
class SealedBundle(Reply):
    """The bundle that the newest statement names by its hash."""

    bundle: BundleBytes


@message(130)
@dataclass(frozen=True, slots=True)
class GetBundle(Request):
    """The asker's own."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (SealedBundle,)
