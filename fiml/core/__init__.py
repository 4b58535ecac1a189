"""What everything else stands on: settings, errors, the clock, the log."""
