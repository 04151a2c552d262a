"""What can go wrong in the torch world. The service translates each of these for its callers (app.errors).

EditorError
    UnsupportedModel    the model has no site that an editor could use
    UnknownEditor       no editor of that name is registered
    BadOptions          an editor's option is unknown or out of range
    FitFailed           no patch could be learned; the message is the reason
    NotFinite           a tensor holds NaN or infinity
    CorruptPatch        bytes that are no patch, or not the patch they claim to be
    ForeignPatch        a patch learned for other weights, another site or another dtype
"""


class EditorError(Exception):
    """The root of every error that editors raise."""


class UnsupportedModel(EditorError):
    """The model has no site that an editor could use; the message says what is missing."""


class UnknownEditor(EditorError):
    """No editor of that name is registered."""


class BadOptions(EditorError):
    """An option is unknown, of the wrong type or out of range."""


class FitFailed(EditorError):
    """No patch could be learned; the message is the reason."""


class NotFinite(EditorError):
    """A tensor holds NaN or infinity."""


class CorruptPatch(EditorError):
    """These bytes are no patch, or not the patch they claim to be."""


class ForeignPatch(EditorError):
    """The patch was learned for other weights, another site or another dtype."""
