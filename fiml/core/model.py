"""The base class of answers: a pydantic model."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A model that builds its own validator at first use.

    Most models are only parts of another one and never need theirs: building all took a fiftieth of a server's start.
    """

    model_config = ConfigDict(defer_build=True)
