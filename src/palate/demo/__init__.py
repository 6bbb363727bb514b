"""The demonstration: controlled sentiment on this machine, with the recipes everyone has."""

from __future__ import annotations

from palate.demo.run import demo

__all__ = ["demo"]
