"""Scorers over HTTP: `palate serve`. Needs the extra `serve`.

`app` the routes, `bodies` and `messages` what they read, `batcher` requests into batches, `guard`
and `protocol` limits and the token, `run` the process.
"""

from __future__ import annotations

from palate.serve.run import serve

__all__ = ["serve"]
