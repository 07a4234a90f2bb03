# SPDX-License-Identifier: Apache-2.0
"""Driver of the security chip (ATECC508A, ATECC608A, ATECC608B), which is slow and falls asleep.

``atecc`` is what others use; ``session`` has the commands, ``wire`` carries them over the bus,
``packet`` has their format, ``memory`` the layout of the zones, ``errors`` the errors.
"""
