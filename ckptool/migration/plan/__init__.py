"""Plans: operations on descriptions, values to inject, suggestions."""
