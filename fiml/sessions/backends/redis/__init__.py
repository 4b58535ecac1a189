"""Live sessions in Redis or Valkey."""
