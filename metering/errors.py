"""Every error that a person may meet: each says what is wrong, where, the value, and what to do."""


class MeteringError(Exception):
    """An error whose message is written for the person who reads it. Subclasses fix the exit code."""

    exit_code = 1


class BadInput(MeteringError):
    """Something the caller gave (an argument, a file, a catalog) cannot be used. Nothing was changed."""

    exit_code = 2


class Unavailable(MeteringError):
    """A server cannot be reached or broke off. The only error that a worker's loop retries."""

    exit_code = 3


class WrongWorld(MeteringError):
    """The world is not what the program was built for (schema version, missing partition, another topic).

    Never retried and never turned into a reject: a person has to act.
    """

    exit_code = 4


class Fenced(MeteringError):
    """Another worker has claimed what this one believed to own; nothing was written."""

    exit_code = 5


class FrameBroken(AssertionError):
    """A frame that does not keep its declaration: the program is wrong, not its input."""
