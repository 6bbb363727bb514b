"""The demonstration of online learning."""
