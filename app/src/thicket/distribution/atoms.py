# SPDX-License-Identifier: Apache-2.0
"""Erlang's atoms that several modules of a node use."""

from __future__ import annotations

from thicket.distribution.etf import Atom

# Why a process ends, or a request is not served.
BAD_ARGUMENT = Atom("badarg")
CANCELLED = Atom("cancelled")
KILL = Atom("kill")
KILLED = Atom("killed")
NORMAL = Atom("normal")
NOT_SUPPORTED = Atom("notsup")
NO_CONNECTION = Atom("noconnection")
NO_PROCESS = Atom("noproc")
PYTHON_EXCEPTION = Atom("python_exception")
SYSTEM_LIMIT = Atom("system_limit")
UNDEFINED_FUNCTION = Atom("undef")

# How a function ends.
ERROR = Atom("error")
RETURN = Atom("return")
THROW = Atom("throw")

# Parts of messages.
ALIAS = Atom("alias")
BAD_RPC = Atom("badrpc")
ERPC = Atom("erpc")
EXIT_SIGNAL = Atom("EXIT")
GEN_CALL = Atom("$gen_call")
GEN_CAST = Atom("$gen_cast")
IS_AUTH = Atom("is_auth")
OK = Atom("ok")
SYSTEM = Atom("system")
YES = Atom("yes")

# Names of processes.
GLOBAL = Atom("global_name_server")
NOBODY = Atom("")
REX = Atom("rex")
UNDEFINED = Atom("undefined")
"""The name that no process has on any node."""

EXECUTE_CALL = (ERPC, Atom("execute_call"), 4)
EXECUTE_CAST = (ERPC, Atom("execute_cast"), 3)
