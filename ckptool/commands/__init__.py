"""What each command does, without click."""
