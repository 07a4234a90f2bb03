# SPDX-License-Identifier: Apache-2.0
"""``[access]``: the ways in for a person."""

from __future__ import annotations

from thicket.base.fields import Boolean, Integer, Pasted, Section


class PublicKeys(Pasted):
    """SSH public keys as OpenSSH writes them: one per line of a text, or a list of such texts.

    The value has one key per line, without blank lines and comments.
    """

    allowed = (
        "SSH public keys, one per line or as a list, each as in the file that ends in .pub: a type "
        "(ssh-ed25519, ecdsa-sha2-nistp256, ssh-rsa ...), the key, and a comment if you like; "
        "empty for none"
    )
    #: Most keys, and most bytes of all of them.
    MOST = 32
    MOST_BYTES = 16 * 1024
    TYPES = (
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ssh-rsa",
    )

    def check(self, raw: object) -> str:
        if isinstance(raw, list):
            if not all(isinstance(item, str) for item in raw):
                raise self.refuse()
            raw = "\n".join(raw)
        if not isinstance(raw, str):
            raise self.refuse()
        if "PRIVATE KEY" in raw or "PuTTY-User-Key-File" in raw:
            raise ValueError(
                "is a private key. Never put one on a card: whoever has the card has the key. "
                "Take the public one, the file that ends in .pub, and make a new pair"
            )
        lines = [line.strip() for line in raw.replace("\r", "\n").split("\n")]
        keys = [line for line in lines if line and not line.startswith("#")]
        if len(keys) > self.MOST or len(raw.encode("utf-8", "surrogatepass")) > self.MOST_BYTES:
            raise ValueError(
                f"holds too much: at most {self.MOST} keys, {self.MOST_BYTES // 1024} KiB"
            )
        for number, line in enumerate(keys, 1):
            fault = self._fault(line)
            if fault:
                which = f"key {number} " if len(keys) > 1 else ""
                raise ValueError(f"{which}{fault}")
        return "\n".join(keys)

    def _fault(self, line: str) -> str | None:
        """Return what is wrong with one key, or None. RFC 4253 6.6 describes the encoded part."""
        import base64  # few nodes have keys

        words = line.split(None, 2)
        kind = words[0]
        if kind not in self.TYPES:
            if kind == "ssh-dss":
                return "is a DSA key, which no SSH server accepts any more; make an ed25519 one"
            if any(word in self.TYPES for word in words[1:]):
                return (
                    f"has options before its type; it must begin with the type ({kind!r} is none)"
                )
            return f"has an unknown type; must begin with one of {', '.join(self.TYPES)}"
        if len(words) < 2:
            return f"ends after its type ({kind}); the key itself is missing"
        if not line.isprintable():
            return "holds control characters"
        try:
            blob = base64.b64decode(words[1], validate=True)
        except ValueError:
            return "is damaged: it is not base64; copy the line of the .pub file as a whole"
        fields = []
        while blob:
            length = int.from_bytes(blob[:4], "big")
            if len(blob) < 4 + length:
                return "is damaged: it is cut off; copy the line of the .pub file as a whole"
            fields.append(blob[4 : 4 + length])
            blob = blob[4 + length :]
        if not fields or fields[0] != kind.encode():
            return f"is damaged: what is encoded in it is no {kind} key"
        if kind == "ssh-rsa" and (len(fields) != 3 or len(fields[2].lstrip(b"\0")) < 256):
            return "is an RSA key of less than 2048 bits; make an ed25519 one"
        if kind == "ssh-ed25519" and (len(fields) != 2 or len(fields[1]) != 32):
            return "is damaged: an ed25519 key has 32 bytes"
        if len(fields) < 2:
            return "is damaged: there is no key in it"
        return None


class AccessSection(Section, name="access"):
    """Ways in for a person. There is no password, and SSH and serial port are closed by default."""

    __slots__ = ()
    ssh_keys = PublicKeys(
        "",
        "SSH keys that may log in as root. Without any there is no SSH server. The node keeps "
        "the keys, so that SSH works even when the daemon cannot start.",
    )
    cable = Boolean(
        True,
        "Where there are SSH keys: let them in at wired interfaces, too, for the first contact by "
        "one cable. The node has link-local addresses there "
        "and tells its name by multicast DNS (`n-....local`); nothing else is open, and nothing "
        "is forwarded.",
    )
    console = Boolean(
        False,
        "A root shell without a password on the node's serial port. Anybody who can touch the "
        "node can then use it.",
    )
    operators = Boolean(
        True,
        "Let people in who have a certificate of the fleet for that (`thicket ca operator`), as "
        "root. Without a fleet there are none.",
    )
    operator_port = Integer(
        9102,
        "TCP port for operators, at the mesh address; the same on all nodes.",
        least=1024,
        most=65535,
    )
