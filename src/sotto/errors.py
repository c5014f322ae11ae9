"""The exceptions that a user is meant to read."""


class SottoError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it.

    The command line prints it and exits with `exit_code`.
    """

    exit_code = 2


class NotAcceptedError(SottoError):
    """The input was fine, but a step broke the bound that its recipe sets on the word error rate."""

    exit_code = 1
