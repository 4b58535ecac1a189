"""Where market figures come from, behind one protocol."""
