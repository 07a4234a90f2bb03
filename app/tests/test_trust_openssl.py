# SPDX-License-Identifier: Apache-2.0
"""OpenSSL's objects live as long as anybody uses them, whatever other threads do meanwhile."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import pytest

from thicket.trust import openssl

DIGEST = hashlib.sha256(b"text").digest()


class Library:
    """libcrypto, with which something happens before a function is called."""

    def __init__(self, name: str, before: Callable[[], object]) -> None:
        self._library = openssl._library()
        self._name, self._before = name, before
        self.freed = 0

    def __getattr__(self, name: str) -> object:
        function = getattr(self._library, name)
        if name == self._name:
            self._before()
        return self._free if name == "EVP_PKEY_free" else function

    def _free(self, key: object) -> None:
        self.freed += 1
        self._library.EVP_PKEY_free(key)


@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("i2d_PUBKEY", openssl.public_key),
        ("EVP_PKEY_CTX_new_from_pkey", lambda key: openssl.sign(key, DIGEST)),
    ],
)
def test_a_key_that_is_no_longer_kept_is_there_while_it_is_used(
    function: str, use: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = openssl.generate_key()
    openssl._private.cache_clear()
    freed: list[int] = []

    def others_take_the_place() -> None:
        before = library.freed
        openssl._private.cache_clear()
        freed.append(library.freed - before)

    library = Library(function, others_take_the_place)
    real = openssl._library()
    monkeypatch.setattr(openssl, "_library", lambda: library)
    assert use(key)
    monkeypatch.setattr(openssl, "_library", lambda: real)
    assert freed == [0]


def test_many_threads_with_many_keys() -> None:
    keys = [openssl.generate_key() for _ in range(8)]
    public = [openssl.public_key(key) for key in keys]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(40):
            at = (number + turn) % len(keys)
            signature = openssl.sign(keys[at], DIGEST)
            good = openssl.verify(public[at], DIGEST, signature)
            if openssl.public_key(keys[at]) != public[at] or not good:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
