# SPDX-License-Identifier: Apache-2.0
"""pyroute2's message classes, without the rest of pyroute2.

``pyroute2/__init__.py`` imports every protocol that the library speaks: about 230 modules, which
take a tenth of a second on a laptop and two seconds on an emulated node. This module needs one of
them, :mod:`pyroute2.netlink`, which codes messages and attributes and needs nothing else of the
package.

So the package is entered into :data:`sys.modules` *unexecuted*, as a module object with the
``__path__`` of the real package, by which its submodules are found. When anything asks for a name
of the package itself (``pyroute2.IPRoute``), its :pep:`562` ``__getattr__`` first runs the real
``__init__.py``; the package behaves as always, only later. The ordinary import is used when the
package was imported before, or has an unexpected layout.
"""

import logging
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType

_PACKAGE = "pyroute2"


def _postpone() -> None:
    """Enter pyroute2 into ``sys.modules`` without running its ``__init__.py``."""
    if _PACKAGE in sys.modules:
        return
    spec = find_spec(_PACKAGE)
    if spec is None or spec.loader is None or not spec.submodule_search_locations:
        return
    package: ModuleType = module_from_spec(spec)
    execute = spec.loader.exec_module

    def complete(name: str) -> object:
        # attributes that import machinery and debuggers ask of any module: there are none
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        if package.__dict__.pop("__getattr__", None) is not None:
            execute(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = complete
    sys.modules[_PACKAGE] = package


_postpone()
try:
    from pyroute2.netlink import ctrlmsg, genlmsg, nla, nlmsg
except ImportError:
    sys.modules.pop(_PACKAGE, None)
    from pyroute2.netlink import ctrlmsg, genlmsg, nla, nlmsg

# pyroute2 logs a traceback for an attribute that it cannot decode, and returns it as bytes; our
# readers check what they get
logging.getLogger("pyroute2").setLevel(logging.CRITICAL)

__all__ = ["ctrlmsg", "genlmsg", "nla", "nlmsg"]
