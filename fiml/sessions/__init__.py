"""Analysis sessions: what they are, where they are kept, what they add up to."""
