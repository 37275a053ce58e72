"""Loaders of frameworks: a folder or a module -> what the framework's own loader does with a state.

One file per framework, with the functions of `FrameworkLoader`; the framework is imported in them,
and nowhere else.
"""
