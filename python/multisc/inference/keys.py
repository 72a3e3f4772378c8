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
    """Create the keys of a server and of its first client.

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
    paths = [directory / name for name in (SERVER_FILE, CLIENTS_FILE, CLIENT_FILE)]
    for path in paths:
        if path.exists():
            raise BadInputError(f"{path} exists already: choose another directory for new keys")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{directory}: cannot write keys: {error.strerror}") from None
    _write(directory / SERVER_FILE, json.dumps({"role": "server", "public": public, "secret": secret}))
    add_client(directory, Path(CLIENT_FILE).stem)
    return paths


def add_client(directory: Path, name: str) -> Path:
    """Create the key file of one more client, and add it to ``authorized-clients``.

    Args:
        directory: where the server's keys are.
        name: of the file ``NAME.key``; letters, digits, - and _.

    Returns:
        The file, of mode 0600.

    Raises:
        BadInputError: for a bad name, a file that exists already, or a directory without a server's keys.
    """
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise BadInputError(f"client name {name!r}: must be letters, digits, - and _")
    server = _load(directory / SERVER_FILE, "server", ("public", "secret"))["public"].decode()
    public, secret = (key.decode() for key in zmq.curve_keypair())
    path = directory / f"{name}.key"
    _write(path, json.dumps({"role": "client", "public": public, "secret": secret, "server": server}))
    _write(directory / CLIENTS_FILE, f"{public} {name}", os.O_APPEND)
    return path


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


def _write(path: Path, line: str, mode: int = os.O_EXCL) -> None:
    """Write a line to a new private file, or append it to one."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600)
        with os.fdopen(handle, "a") as file:
            file.write(line + "\n")
    except FileExistsError:
        raise BadInputError(f"{path} exists already: choose another name") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot write keys: {error.strerror}") from None


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
