"""The two ways a run ends badly: the user can mend it (exit 2), or something broke (exit 1)."""


class UserError(Exception):
    """A mistake that the user can mend: says what, the value, the rule and the way out. Exit 2."""


class Failure(Exception):
    """Something broke while running; what was finished is kept. Exit 1."""


class DiskFull(Failure):
    """No space is left: trying again at once is useless, so it ends a run instead of a block."""
