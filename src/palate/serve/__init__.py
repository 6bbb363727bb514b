"""Scorers over HTTP: `palate serve`. Needs the extra `serve`.

`app` the routes, `batcher` requests into batches, `guard` limits and the token, `run` the process.
"""

from __future__ import annotations

from palate.serve.run import serve

__all__ = ["serve"]
