# SPDX-License-Identifier: Apache-2.0
"""thicket.daemon.start: what the daemon's start loads, and that sparing TLS does no harm."""

import subprocess
import sys


def run(code: str) -> list[str]:
    prologue = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", prologue + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_start_path_imports_no_heavy_modules() -> None:
    loaded = set(
        run(
            "from thicket.daemon.start import import_asyncio; import_asyncio()\n"
            "import thicket.daemon, thicket.identity, thicket.radio, thicket.distribution\n"
            "print(*sys.modules)"
        )
    )
    assert {"asyncio", "thicket.distribution"} <= loaded
    heavy = {"ssl", "argparse", "dataclasses", "difflib", "tomllib", "hashlib", "random",
             "tempfile", "urllib.request", "email", "logging.handlers", "pathlib"}  # fmt: skip
    if sys.version_info >= (3, 13):  # as on a node
        heavy |= {"ast", "inspect", "textwrap"}
    assert not heavy & loaded


def test_asyncio_without_ssl_still_serves_and_ssl_can_still_be_imported() -> None:
    code = """
from thicket.daemon.start import import_asyncio
import_asyncio()
import asyncio
async def main():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    print((await reader.read()).decode())
    writer.close()
    server.close()
asyncio.run(main())
import ssl
print(ssl.OPENSSL_VERSION.split()[0])
"""
    assert run(code) == ["hello", "OpenSSL"]
