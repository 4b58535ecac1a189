"""The base of what is answered: a pydantic model."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A model whose validator is made when it is first needed by itself.

    Most stand within another's schema and never are: to make them all took a fiftieth of a server's start.
    """

    model_config = ConfigDict(defer_build=True)
