"""What goes wrong through no fault of the program."""


class UsageError(ValueError):
    """The command cannot do what it is asked to; the message says what to do instead."""
