"""A demo of an analysis that remembers, on real historical data.

Run it with `python examples/session_demo.py`. The code is in `fiml/cli/demo.py`, which `fiml demo` runs too.
"""

from fiml.cli.demo import tell

if __name__ == "__main__":
    tell()
