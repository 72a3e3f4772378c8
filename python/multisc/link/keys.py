"""CURVE keys: who may use the inference process from another machine, and how a client knows the server."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import zmq

from multisc.errors import BadInputError

SERVER_FILE = "server.key"
CLIENT_FILE = "client.key"
CLIENTS_FILE = "authorized-clients"
MAX_KEY_FILE = 1 << 20
_LENGTH = 40  # characters of a Z85 key


@dataclass(frozen=True)
class ServerKeys:
    """The server's pair, and the public keys of the clients it lets in; Z85 text."""

    public: bytes
    secret: bytes
    clients: frozenset[bytes]


@dataclass(frozen=True)
class ClientKeys:
    """A client's pair, and the public key of the one server it talks to; Z85 text."""

    public: bytes
    secret: bytes
    server: bytes


def make_keys(directory: Path) -> list[Path]:
    """Create the keys of a server and of one client.

    Args:
        directory: made with mode 0700 when missing. ``server.key`` and ``authorized-clients`` stay there,
            ``client.key`` is for the client's machine. Every file has mode 0600.

    Returns:
        The files.

    Raises:
        BadInputError: when one of them exists already, or the directory cannot be written.
    """
    if not zmq.has("curve"):
        raise BadInputError("this build of ZeroMQ has no CURVE: install a pyzmq wheel from PyPI")
    server_public, server_secret = (key.decode() for key in zmq.curve_keypair())
    public, secret = (key.decode() for key in zmq.curve_keypair())
    contents = {
        SERVER_FILE: json.dumps({"role": "server", "public": server_public, "secret": server_secret}),
        CLIENT_FILE: json.dumps({"role": "client", "public": public, "secret": secret, "server": server_public}),
        CLIENTS_FILE: f"{public} first client",
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in contents:
            if (directory / name).exists():
                raise BadInputError(f"{directory / name} exists already: choose another directory for new keys")
        for name, text in contents.items():
            handle = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(text + "\n")
    except OSError as error:
        raise BadInputError(f"{directory}: cannot write keys: {error.strerror}") from None
    return [directory / name for name in contents]


def load_server_keys(directory: Path) -> ServerKeys:
    """Read ``server.key`` and ``authorized-clients`` (lines of a public key, a space, a remark).

    Raises:
        BadInputError: when a file is missing, readable by others, or not what it should be.
    """
    values = _load(directory / SERVER_FILE, "server", ("public", "secret"))
    lines = _read(directory / CLIENTS_FILE).splitlines()
    clients = frozenset(
        _key(line[:_LENGTH], f"{directory / CLIENTS_FILE}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return ServerKeys(values["public"], values["secret"], clients)


def load_client_keys(path: Path) -> ClientKeys:
    """Read a ``client.key``.

    Raises:
        BadInputError: when it is missing, readable by others, or not what it should be.
    """
    return ClientKeys(**_load(path, "client", ("public", "secret", "server")))


def _load(path: Path, role: str, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        tree = json.loads(_read(path))
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or tree.get("role") != role:
        raise BadInputError(f"{path}: is not a {role} key file (make one with: multisc serve --make-keys DIR)")
    return {name: _key(tree.get(name), f"{path}, {name}") for name in names}


def _key(text: object, where: str) -> bytes:
    try:
        if isinstance(text, str) and len(text) == _LENGTH:
            zmq.curve_public(text.encode("ascii"))  # raises unless the text is Z85
            return text.encode("ascii")
    except (ValueError, KeyError, zmq.ZMQError):
        pass
    raise BadInputError(f"{where}: is not a key of {_LENGTH} Z85 characters")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise BadInputError(f"{path}: others may read this key file: chmod 600 {path}")
            return file.read(MAX_KEY_FILE).decode("ascii")
    except OSError as error:
        raise BadInputError(f"{path}: cannot read keys: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInputError(f"{path}: is not a key file") from None
