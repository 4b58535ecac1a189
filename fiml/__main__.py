"""`python -m fiml` is the command `fiml`."""

from fiml.cli import main

if __name__ == "__main__":
    main()
