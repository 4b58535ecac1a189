"""Analysis sessions: what they are, where they are stored, and statistics over them."""
