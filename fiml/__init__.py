"""fiml keeps a financial analysis alive: sessions that remember what was asked, answered and concluded."""

__version__ = "0.4.0"
