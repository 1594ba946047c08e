"""Says within about 4 seconds whether pip's package index can be reached (exit status 0: it can).

pip's own time-outs and retries add up to minutes when a machine is offline; one connection tells as much. The
address is known to pip alone, so pip is asked for it.
"""

import os
import socket
import subprocess
import sys
import threading
import urllib.parse

SECONDS = 4


def connects(url):
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    done = threading.Event()

    def attempt():  # in a thread: looking up a name has no time-out of its own
        try:
            socket.create_connection((parts.hostname, port), timeout=SECONDS).close()
            done.set()
        except OSError:
            failed.set()

    failed = threading.Event()
    threading.Thread(target=attempt, daemon=True).start()
    for _ in range(SECONDS * 20):
        if done.wait(0.05):
            return True
        if failed.is_set():
            return False
    return False


def pip_setting(name):
    command = [sys.executable, "-m", "pip", "config", "get", name]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def pip_index():
    """True when the index, or the proxy before it, can be reached; also when its address is not to be found out."""
    env = os.environ
    url = env.get("https_proxy") or env.get("HTTPS_PROXY") or env.get("PIP_PROXY") or env.get("PIP_INDEX_URL")
    url = url or pip_setting("global.proxy") or pip_setting("global.index-url")
    if not url:
        try:
            from pip._internal.models.index import PyPI
            url = PyPI.simple_url
        except ImportError:
            return True
    return connects(url if "://" in url else f"http://{url}")


if __name__ == "__main__":
    sys.exit(0 if pip_index() else 1)
