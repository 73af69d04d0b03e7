"""What both sides must agree on: encoding, frames, messages, signed records, log mathematics.

No file, socket, clock or thread is used here, and neither `sfsd` nor `sfsc` is known. What came
from elsewhere is checked before it is believed; see `errors` for what is raised where it is wrong.
"""

VERSION = "0.1.0"
"""Of both programs, which are released together; here, since asking the installed package for it
costs a start a tenth of a second."""
