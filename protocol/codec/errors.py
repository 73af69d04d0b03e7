"""Everything that can go wrong in `protocol`, one tree::

    ProtocolError
    ├── LocalProtocolError        we erred: a call that is illegal in this state
    └── RemoteProtocolError       they erred: bytes that are not what they must be
        ├── EncodingError         not strict msgpack, or past a cap
        ├── FrameError            a declared length past the limit of this state
        ├── MessageError          a message or record with a wrong shape or value
        │   └── UnknownMessage    a type number that this version does not know
        ├── SequenceError         a legal message at the wrong time
        ├── SignatureError        a signature that does not verify
        ├── ChainError            a statement that does not follow from the one before it
        ├── CheckpointError       a signed note that is not one, or of another log
        ├── ProofError            a Merkle proof that does not prove what it says
        └── LogError              a log line that does not parse or chain; has `.seq`

Facts that a caller acts on are attributes; the text is for people.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of this package's errors."""


class LocalProtocolError(ProtocolError):
    """The calling side broke the rules; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The other side (or the bytes on disk) broke the rules."""


class EncodingError(RemoteProtocolError):
    """Bytes that are not one strict msgpack value within the caps."""


class FrameError(RemoteProtocolError):
    """A frame whose declared length is zero or past the limit."""


class MessageError(RemoteProtocolError):
    """A message or signed record whose fields have a wrong shape or value."""


class UnknownMessage(MessageError):
    """A well-formed message of a type this version does not know.

    `number` is the type, `request_id` what an error reply must carry.
    """

    def __init__(self, number: int, request_id: int) -> None:
        super().__init__(f"unknown message type {number}")
        self.number = number
        self.request_id = request_id


class ChainError(RemoteProtocolError):
    """An identity statement that does not follow from the one before it."""


class SequenceError(RemoteProtocolError):
    """A legal message that this state of the connection does not allow."""


class SignatureError(RemoteProtocolError):
    """An Ed25519 signature that does not verify."""


class CheckpointError(RemoteProtocolError):
    """A checkpoint that is malformed, of another origin, or not validly signed."""


class ProofError(RemoteProtocolError):
    """An inclusion or consistency proof that does not verify."""


class LogError(RemoteProtocolError):
    """A log line that does not parse, hash or chain. `seq` is the first wrong entry, `problem` what
    is wrong with it."""

    def __init__(self, problem: str, *, seq: int) -> None:
        super().__init__(f"entry {seq}: {problem}")
        self.problem = problem
        self.seq = seq
