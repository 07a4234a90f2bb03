# SPDX-License-Identifier: Apache-2.0
"""Updates: RAUC bundles in verity format, as a node and the engineer's desk read them; the slots.

``bundle`` is the file, ``manifest`` what it says of itself, ``verity`` the hash tree over what is
in it. ``thicket.trust.update_signer`` decides whose signature counts. ``tools/src/firmware`` makes
bundles, ``tools/src/authority`` signs them (``thicket update``).

``offer`` is what travels ahead of an update, ``patch`` the file that a node makes the bundle from,
by ``rebuild``, whose process is ``apply`` (files by ``mapped``, compression by ``zstd``).

``service`` is the part of the daemon: whether the slot that runs is well (``health``), and what
became of the other one.
"""
