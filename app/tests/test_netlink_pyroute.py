# SPDX-License-Identifier: Apache-2.0
"""Does the light import of pyroute2 stay light, and leave a working pyroute2 behind?"""

import subprocess
import sys

from patience import PATIENCE


def python(program: str) -> str:
    """Run a program in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COUNT = "sum(name.partition('.')[0] == 'pyroute2' for name in sys.modules)"


def test_only_the_message_coding_is_imported() -> None:
    names = python(
        "import sys, thicket.radio.mesh\n"
        "print(*sorted(name for name in sys.modules if name.startswith('pyroute2')))"
    ).split()
    assert names == [
        "pyroute2",
        "pyroute2.common",
        "pyroute2.netlink",
        "pyroute2.netlink.exceptions",
    ]


def test_heavy_parts_of_the_standard_library_stay_out() -> None:
    loaded = python("import sys, thicket.radio.mesh\nprint(*sys.modules)").split()
    assert not {"multiprocessing", "pathlib", "dataclasses", "argparse", "json"} & set(loaded)


def test_the_package_completes_itself_when_it_is_used() -> None:
    assert (
        python(
            "import thicket.netlink.pyroute as light\n"
            "import pyroute2\n"
            "assert callable(pyroute2.IPRoute)\n"
            "assert pyroute2.__version__\n"
            "from pyroute2.netlink import nlmsg\n"
            "print(nlmsg is light.nlmsg, '__getattr__' in vars(pyroute2))"
        )
        == "True False"
    )


def test_names_can_be_imported_from_the_package_later() -> None:
    assert (
        python(
            "import thicket.netlink.pyroute\n"
            "from pyroute2 import AsyncIPRoute\n"
            "print(AsyncIPRoute.__name__)"
        )
        == "AsyncIPRoute"
    )


def test_a_package_that_was_imported_before_is_used_as_it_is() -> None:
    assert (
        python(
            "import pyroute2\nbefore = pyroute2\nimport thicket.netlink.pyroute as light, sys\n"
            "print(sys.modules['pyroute2'] is before, light.nlmsg is pyroute2.netlink.nlmsg)"
        )
        == "True True"
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert python(
        "import thicket.netlink.pyroute, pyroute2\n"
        "try:\n pyroute2.no_such_name\nexcept AttributeError as e:\n print(e)"
    ).endswith("has no attribute 'no_such_name'")
