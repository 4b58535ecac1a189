"""Who may act: principals, what they may do, and the tokens that identify them."""
