"""Servers that write responses: what they are asked, checked for and given, by kind."""
