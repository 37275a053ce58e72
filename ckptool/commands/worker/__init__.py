"""The one way to code that is not ours: questions, asked here or in a child process."""
