"""An analysis that remembers, told as a story on real history.

Run it with `python examples/session_demo.py`. The story itself is `fiml/cli/demo.py`, which `fiml demo` tells too.
"""

from fiml.cli.demo import tell

if __name__ == "__main__":
    tell()
