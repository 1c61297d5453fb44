"""The base of everything that is kept as JSON."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A misspelt field is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
