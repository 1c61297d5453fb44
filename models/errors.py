"""The errors that users meet: one tree, one file.

NfoldError
├── ConfigError            a setting is wrong: names the field, the value and what would be right
├── CheckpointError        a model directory is incomplete or damaged
├── RequestError           one request is wrong; the caller can mend it             HTTP 400
│   ├── ContextLengthError     prompt and answer do not fit the model's context     HTTP 400
│   ├── UnknownModelError      no model of this name is served                      HTTP 404
│   └── BodyTooLargeError      the HTTP body is over the limit                      HTTP 413
├── OverloadedError        the queue is full; come back in retry_after_s            HTTP 429
├── UnavailableError       no replica can take the request now                      HTTP 503
│   └── NoGatewayError         no gateway could                                         HTTP 503
├── EngineError            an engine failed while it worked; its replica restarts   HTTP 500
├── PlacementError         the cluster has no room; says which bundle does not fit where
├── DeviceError            a rank does not see the accelerator of its bundle
├── HostError              a listed host does not answer or does not start Ray; says which, and why
└── StateError             a command meets a cluster in the wrong state (none running, already running)
"""


class NfoldError(Exception):
    """Base of every error that nfold shows to its users. `str(error)` is one readable paragraph."""


class ConfigError(NfoldError):
    """A setting is wrong.

    Args:
        field: dotted path of the setting, as the user wrote it (`models[0].tp`).
        value: what was given.
        expected: what would be right, as a phrase.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: got {value!r}; {expected}")
        self.field = field
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, self.value, self.expected)


class CheckpointError(NfoldError):
    """A model directory is incomplete or damaged; the message names the file."""


class RequestError(NfoldError):
    """One request is wrong. `param` is the OpenAI parameter at fault, if there is one."""

    status = 400

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.message, self.param)


class ContextLengthError(RequestError):
    """Prompt and wanted answer do not fit the model's context."""


class UnknownModelError(RequestError):
    """No model of this name is served here."""

    status = 404


class BodyTooLargeError(RequestError):
    """The HTTP body is over the limit."""

    status = 413


class OverloadedError(NfoldError):
    """The queue is full. `retry_after_s` is when room is expected, in seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.message, self.retry_after_s)


class UnavailableError(NfoldError):
    """No replica can take the request now."""


class NoGatewayError(UnavailableError):
    """The request has reached no gateway, or lost the one that it had before anything was answered."""


class EngineError(NfoldError):
    """An engine failed while it worked."""

    @staticmethod
    def told(error: Exception) -> NfoldError:
        """`error` when users can read it, else an EngineError that names it."""
        return error if isinstance(error, NfoldError) else EngineError(f"{type(error).__name__}: {error}")


class PlacementError(NfoldError):
    """The cluster has no room for a bundle; the message says which bundle does not fit on which node."""


class DeviceError(NfoldError):
    """A rank does not see the accelerator that its bundle gave it."""


class HostError(NfoldError):
    """A listed host cannot be used now."""


class StateError(NfoldError):
    """A command meets a cluster in the wrong state."""
