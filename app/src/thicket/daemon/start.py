# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``thicketd`` that spares what the start can do without.

Two things, which are worth about a seventh of the CPU time of all imports: no garbage collection
while modules make objects that stay for ever, and asyncio without the module ``ssl``. asyncio works
without it on Pythons built without OpenSSL; nothing in the daemon uses TLS through asyncio yet.
Once something does, take :func:`import_asyncio` away: asyncio's modules keep what they found.
"""

import gc
import sys


def import_asyncio() -> None:
    """Import asyncio as if there were no ``ssl``; other modules can still import that."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # makes ``import ssl`` an ImportError
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


def main() -> int:
    """Run the daemon; the exit status."""
    gc.disable()
    import_asyncio()
    from thicket.daemon.daemon import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
