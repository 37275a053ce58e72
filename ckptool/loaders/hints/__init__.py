"""Sentences on how a checkpoint without a module is loaded; nothing is imported for them."""
