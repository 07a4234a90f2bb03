# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``thicketd``, which saves a good part of the CPU time of all imports.

There is no garbage collection while modules make objects that stay for ever, and asyncio is
imported without the module ``ssl``. asyncio supports that for Pythons without OpenSSL. Its modules
keep what they found at import, so what uses TLS through asyncio calls :func:`provide_ssl` before.
"""

import gc
import sys

from thicket.base.imports import postponed, stand_in


def import_asyncio() -> None:
    """Import asyncio as if there were no ``ssl``, and without what it needs to report errors.

    asyncio uses ``inspect``, and ``traceback`` uses ``textwrap``, when something fails. They are
    imported then.
    """
    if "asyncio" in sys.modules:
        return
    with stand_in("ssl", None), postponed("inspect"), postponed("textwrap"):
        import asyncio  # noqa: F401


def provide_ssl() -> None:
    """Let asyncio use TLS, which it was imported without."""
    import importlib
    import ssl
    from asyncio import base_events, selector_events, sslproto

    if getattr(sslproto, "ssl", None) is None:
        for module in (base_events, selector_events):
            module.ssl = ssl  # type: ignore[attr-defined]
        importlib.reload(sslproto)  # some of what it defines is made of ssl's


def main() -> int:
    """Run the daemon, and return the exit status."""
    gc.disable()
    import_asyncio()
    from thicket.daemon.daemon import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
