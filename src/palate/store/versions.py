"""What a result was computed with: versions of this code and of the libraries."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
"""Of this code; the package's metadata takes it from here."""

LIBRARIES = ("torch", "transformers", "peft", "datasets", "pyarrow", "scipy", "sacrebleu")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    # Imported where they are used: every command reads this module, `--help` too.
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def code_version() -> dict[str, Any]:
    """Commit of the source tree, and whether it has changes; None outside a checkout."""
    import subprocess

    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Another project's checkout may hold this one's installed files.
    if not (package.parents[1] / ".git").exists():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
