# SPDX-License-Identifier: Apache-2.0
"""thicket.base.imports: stand-ins for modules that are not needed."""

import subprocess
import sys


def run(code: str) -> list[str]:
    """Run code in an interpreter of its own, as what it imports stays imported."""
    prologue = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from thicket.base.imports import postponed, stand_in\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", prologue + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_stand_in_is_kept_by_who_imported_it_and_others_get_the_module() -> None:
    code = """
with stand_in("colorsys", {"ONE_THIRD": "none"}):
    import colorsys as mine
import colorsys
print(mine.ONE_THIRD, colorsys.ONE_THIRD == 1 / 3, hasattr(mine, "rgb_to_hsv"))
"""
    assert run(code) == ["none", "True", "False"]


def test_a_stand_in_within_a_package_is_found_as_its_attribute_and_leaves_it() -> None:
    code = """
import email
with stand_in("email.errors", {"MessageError": "none"}):
    import email.errors
    print(email.errors.MessageError)
print(hasattr(email, "errors"))
import email.errors
print(email.errors.MessageError.__name__)
"""
    assert run(code) == ["none", "False", "MessageError"]


def test_none_is_an_import_error_inside_only() -> None:
    code = """
with stand_in("colorsys", None):
    try:
        import colorsys
    except ImportError:
        print("no")
import colorsys
print("yes")
"""
    assert run(code) == ["no", "yes"]


def test_a_module_that_is_loaded_already_stays_in_place() -> None:
    code = """
import colorsys
with stand_in("colorsys", None), postponed("colorsys"):
    import colorsys as again
print(again is colorsys, sys.modules["colorsys"] is colorsys)
"""
    assert run(code) == ["True", "True"]


def test_a_postponed_module_is_loaded_at_its_first_use_inside_or_later() -> None:
    code = """
with postponed("colorsys"):
    import colorsys as later
    print("colorsys" in vars(later), "rgb_to_hsv" in vars(later))
print("colorsys" in sys.modules)
print(later.rgb_to_hsv(0, 0, 0) == (0, 0, 0), "colorsys" in sys.modules)
with postponed("sched"):
    import sched as now
    kept = now.scheduler
    import sched
    print(kept is sched.scheduler)
"""
    assert run(code) == ["False", "False", "False", "True", "True", "True"]


def test_a_postponed_module_that_does_not_exist_is_an_import_error_when_it_is_used() -> None:
    code = """
with postponed("no_such_module"):
    import no_such_module
try:
    no_such_module.name
except ImportError as e:
    print(e.name)
"""
    assert run(code) == ["no_such_module"]


def test_zeroconf_finds_the_addresses_without_asking_where_the_c_library_is() -> None:
    code = """
import socket
with stand_in("ctypes.util", {"find_library": lambda name: None}):
    import zeroconf, ifaddr
names = {adapter.name for adapter in ifaddr.get_adapters()}
print(names <= {name for _, name in socket.if_nameindex()}, "lo" in names)
import ctypes.util
print(ctypes.util.find_library("c"))
"""
    assert run(code)[:2] == ["True", "True"]
