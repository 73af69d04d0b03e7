"""Errors of `protocol`. Facts that a caller acts on are attributes; the text is for users."""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of this package's errors."""


class LocalProtocolError(ProtocolError):
    """The caller broke the rules, such as by a call that the state forbids; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer, or the bytes on disk, broke the rules."""


class EncodingError(RemoteProtocolError):
    """Bytes that are not exactly one strict msgpack value within the caps."""


class FrameError(RemoteProtocolError):
    """A frame whose declared length is zero or past the limit."""


class MessageError(RemoteProtocolError):
    """A message or signed record whose fields have a wrong shape or value."""


class UnknownMessage(MessageError):
    """A well-formed message of a type this version does not know.

    `number` is the message type, `request_id` the request that an error reply must answer.
    """

    def __init__(self, number: int, request_id: int) -> None:
        super().__init__(f"unknown message type {number}")
        self.number = number
        self.request_id = request_id


class QuantityError(ProtocolError):
    """Text that is no size, duration, count or percentage. `cause` says that, and `hint` how to
    write one."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(f"{cause}; {hint}")
        self.cause = cause
        self.hint = hint


class ChainError(RemoteProtocolError):
    """An identity statement that does not follow from the one before it."""


class SequenceError(RemoteProtocolError):
    """A legal message that this state of the connection does not allow."""


class SignatureError(RemoteProtocolError):
    """An Ed25519 signature that does not verify."""


class PublicKeyError(RemoteProtocolError):
    """A public key that nobody can use, or that is not in its one valid encoding."""


class CheckpointError(RemoteProtocolError):
    """A checkpoint that is malformed, has another origin or lacks a valid signature."""


class ProofError(RemoteProtocolError):
    """An inclusion or consistency proof that does not verify."""


class LogError(RemoteProtocolError):
    """A log line that does not parse, hash or chain. `seq` is the first wrong entry, `problem` the
    reason."""

    def __init__(self, problem: str, *, seq: int) -> None:
        super().__init__(f"entry {seq}: {problem}")
        self.problem = problem
        self.seq = seq
