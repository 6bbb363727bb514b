"""Whether the model hub can be reached."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def unreachable() -> bool:
    """Whether the hub's address cannot be resolved, so that its client would try for a minute.

    Behind a proxy only the proxy can tell.
    """
    if getproxies():
        return False
    from huggingface_hub.constants import ENDPOINT

    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return True
    return False
