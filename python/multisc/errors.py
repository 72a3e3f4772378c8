"""The errors a user may see; each carries the exit code its command ends with.

The message is one line that names the input at fault and what would be right.
"""


def reason_of(error: BaseException, lines: int = 1, limit: int = 300) -> str:
    """Return what a library's exception says, on one line without a full stop; its class when it says nothing.

    Args:
        error: whose text may have many lines.
        lines: taken of those that are not blank.
        limit: characters.
    """
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:lines])[:limit].rstrip(".") or type(error).__name__


class MultiscError(Exception):
    """A failure of the run that is not the user's input; the command exits with 1."""

    exit_code = 1


class BadInputError(MultiscError):
    """The usage or the input is wrong (file, number, name, option); the command exits with 2."""

    exit_code = 2


class InferenceError(MultiscError):
    """The inference process could not be reached, died, refused, or did not answer in time."""


class ModelError(MultiscError):
    """A checkpoint is missing, incomplete, of the wrong shape or of a refused format."""
