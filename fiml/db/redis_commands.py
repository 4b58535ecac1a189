"""What is sent to Redis or Valkey: scripts, and commands of which it is known where their keys are."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files

Argument = str | bytes | int | float
Command = tuple[Argument, ...]

SCRIPT_COMMAND = "EVALSHA"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the server by its digest."""

    text: str
    digest: str

    @classmethod
    def load(cls, package: str, *names: str) -> "Script":
        """The script `lua/<name>.lua` of a package; several files are joined in the order of their names here."""
        text = "".join(files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8") for name in names)
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    def __call__(self, keys: Sequence[str], *arguments: Argument) -> Command:
        """The command that runs the script."""
        return (SCRIPT_COMMAND, self.digest, len(keys), *keys, *arguments)


def with_prefix(command: Command, prefix: str) -> Command:
    """A command with a prefix before its keys: those that a script declares, or a command's first argument."""
    if command[0] != SCRIPT_COMMAND:
        name, key, *arguments = command
        return (name, prefix + str(key), *arguments)
    end = 3 + int(command[2])
    return (*command[:3], *[prefix + str(key) for key in command[3:end]], *command[end:])


def key_of(command: Command) -> str:
    """The key that determines a command's slot; all keys of a script are in one slot."""
    return str(command[3] if command[0] == SCRIPT_COMMAND else command[1])
