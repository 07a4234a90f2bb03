# SPDX-License-Identifier: Apache-2.0
"""Releases: folders that any web server can publish, and from which cards are flashed.

``SHA256SUMS`` names every file, ``SHA256SUMS.cms`` signs it, and ``index.json``, which is named
there too, says what the files are. ``make`` writes such a folder, ``find`` takes a card image from
one and checks it.
"""
