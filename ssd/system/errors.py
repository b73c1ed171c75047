"""What goes wrong through no fault of the program."""


class UserError(ValueError):
    """What the user can mend; the message has one line for each fault: file, key or object, and what to do."""


class UsageError(UserError):
    """The command cannot do what it is asked to; the message says what to do instead."""


class Failure(RuntimeError):
    """What was begun well cannot be finished; the message says why, and what may help."""

    can_resume = False  # what was done so far is saved, and resuming may well come further
