"""Media that a request names: the one module of the server that opens addresses and files.

`Media.read` turns a URL into the bytes of a file, or refuses it with one of a few fixed texts. Nothing is decoded here.

- `data:` URLs pass as they are; whoever decodes them counts their bytes first.
- `http://` and `https://` are off unless the host is on the allow list. One strict reading of the URL serves all: what
  it does not allow (user names, backslashes, blanks, other ports, numbers that are not written as addresses are) is no
  host for anybody. The name is resolved once, all its addresses are checked, and those very addresses are dialled, so
  that a name server cannot answer differently a second time. Every redirect goes through the same door.
- `file://` is off unless there is one folder to read from, and the path lies in it after all links are followed.
"""

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin

from foveal.core.errors import ConfigError, MediaError

Resolver = Callable[[str, int], Sequence[str]]
"""Addresses of a host name, as text."""

REDIRECTS = 3
_PIECE = 64 * 1024
_URL = re.compile(r"(https?)://([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?([/?][!-~]*)?", re.ASCII)
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9\-]{0,61}[a-z0-9])?\Z")
_STANDARD = {"http": 80, "https": 443}

REFUSED = {
    "remote": "remote media are off on this server; send the file as a data: URL.",
    "url": "the address of a medium is not a plain http or https URL.",
    "host": "the host of a medium is not on this server's list of allowed hosts.",
    "address": "the host of a medium has an address that is not public.",
    "resolve": "the host of a medium cannot be resolved.",
    "connect": "a remote medium could not be fetched: no connection.",
    "status": "a remote medium could not be fetched: the host did not answer with a file.",
    "redirect": "a remote medium could not be fetched: it is redirected too often, or to another kind of address.",
    "time": "a remote medium could not be fetched in time.",
    "size": "a medium has more bytes than this server takes.",
    "files": "files of this machine are off on this server; send the file as a data: URL.",
    "file": "there is no such file in the folder that this server reads from.",
    "scheme": "a medium is named in a way that this server does not read; send a data: URL.",
}
"""Everything that `Media.read` says when it refuses."""


class Refused(MediaError):
    """A medium that is not fetched. `code` is a key of `REFUSED`, the message its text."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(REFUSED[code])


# Beside what `is_global` knows, which differs between releases of Python: protocol assignments, a cloud's metadata
# service under an ordinary address, and old anycast relays.
_CLOSED = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "192.88.99.0/24")))
_UNICAST = ipaddress.ip_network("2000::/3")
# Addresses within it that carry an IPv4 address, which a translator on the way would reach.
_WRAPPED = tuple(map(ipaddress.ip_network, ("2001::/23", "2002::/16")))


def is_public(address: str) -> bool:
    """Whether an address is an ordinary one of the internet, which anybody may ask.

    Private, loopback, link-local, shared, reserved, documentation and multicast addresses are not, nor are those that
    hold an IPv4 address (mapped, 6to4, NAT64, Teredo), those with a zone, and known metadata services.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # a zone ("fe80::1%eth0") is one: it means something on one machine only
        return False
    if found.is_multicast or found.is_reserved or not found.is_global:
        return False
    if found.version == 4:
        return not any(found in net for net in _CLOSED)
    return found in _UNICAST and not any(found in net for net in _WRAPPED)


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of `host`; raises `OSError` when it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, kw_only=True)
class Media:
    """What a server may open for a request.

    Attributes:
        hosts: host names from which media are fetched, in lower case; a name with a port ("media.lan:8000") allows
            that port in place of 80 and 443. Empty: remote media are off.
        folder: the folder whose files may be named; None: files are off.
        file_bytes: bytes of one file.
        fetch_s: seconds for one file with all redirects.
        resolver, permitted: how names are resolved, and which addresses are dialled.
    """

    hosts: frozenset[str] = frozenset()
    folder: Path | None = None
    file_bytes: int = 32 * 1024**2
    fetch_s: float = 10.0
    resolver: Resolver = resolve
    permitted: Callable[[str], bool] = is_public

    def __post_init__(self) -> None:
        for host in self.hosts:
            name, _, port = host.partition(":")
            numbers = name.replace(".", "").isdigit()
            if (port and not port.isdigit()) or (not _canonical(name) if numbers else not _NAME.match(name)):
                raise ConfigError(
                    f"allowed media domain {host!r} is no host name; write media.example.com, "
                    "or media.example.com:8000 for another port."
                )
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"the folder for local media, {self.folder}, does not exist; make it or name another.")

    def read(self, url: str) -> bytes | str:
        """The bytes that `url` names; a `data:` URL is given back as it is. Raises `Refused`. May take `fetch_s`."""
        head = url[:8].lower()
        if head.startswith("data:"):
            return url
        if head.startswith("file:"):
            return self._file(url)
        if head.startswith("http:") or head.startswith("https:"):
            return self._fetch(url)
        raise Refused("scheme")

    def _file(self, url: str) -> bytes:
        if self.folder is None:
            raise Refused("files")
        path = unquote(url[7:]) if url[:8].lower() == "file:///" else ""
        if not path or "\0" in path:
            raise Refused("file")
        try:
            root = self.folder.resolve(strict=True)
            found = Path(path).resolve(strict=True)
            if not found.is_relative_to(root):
                raise Refused("file")
            # Links were followed above; one that appears since then is not.
            handle = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, RuntimeError, ValueError):
            raise Refused("file") from None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("file")
            if status.st_size > self.file_bytes:
                raise Refused("size")
            with os.fdopen(handle, "rb", closefd=False) as stream:
                return stream.read(self.file_bytes)
        finally:
            os.close(handle)

    def _fetch(self, url: str) -> bytes:
        if not self.hosts:
            raise Refused("remote")
        deadline = time.monotonic() + self.fetch_s
        for _ in range(REDIRECTS + 1):
            target = self._target(url)
            answer = self._ask(target, deadline)
            if isinstance(answer, bytes):
                return answer
            onward = urljoin(url, answer)
            if onward.partition(":")[0].lower() not in (target.scheme, "https"):
                raise Refused("redirect")
            url = onward
        raise Refused("redirect")

    def _target(self, url: str) -> "_Target":
        found = _URL.fullmatch(url.partition("#")[0])
        if found is None or len(url) > 8192:
            raise Refused("url")
        scheme, host, port_text, path = found[1].lower(), found[2].lower(), found[3], found[4] or "/"
        port = int(port_text) if port_text else _STANDARD[scheme]
        allowed = host in self.hosts and port == _STANDARD[scheme]
        if not allowed and f"{host}:{port}" not in self.hosts:
            raise Refused("host")
        if _canonical(host):
            addresses: Sequence[str] = (host,)
        else:
            try:
                addresses = self.resolver(host, port)
            except (OSError, UnicodeError):
                raise Refused("resolve") from None
        if not addresses:
            raise Refused("resolve")
        if not all(self.permitted(address) for address in addresses):
            raise Refused("address")
        return _Target(scheme, host, port, path if path[0] == "/" else f"/{path}", tuple(addresses))

    def _ask(self, target: "_Target", deadline: float) -> bytes | str:
        """The body of a file, or the address that a redirect names."""
        connection = _Pinned(target, deadline)
        try:
            with connection.until(deadline):
                connection.request("GET", target.path, headers={"Accept-Encoding": "identity", "User-Agent": "foveal"})
                with connection.getresponse() as answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        return answer.getheader("Location") or ""
                    if answer.status != 200 or (answer.getheader("Content-Encoding") or "identity") != "identity":
                        raise Refused("status")
                    return self._body(answer, deadline)
        except Refused:
            raise
        except (OSError, http.client.HTTPException, ValueError):
            raise Refused("time" if time.monotonic() >= deadline else "connect") from None
        finally:
            connection.close()

    def _body(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        if answer.length is not None and answer.length > self.file_bytes:
            raise Refused("size")
        pieces, size = [], 0
        while piece := answer.read(min(_PIECE, self.file_bytes + 1 - size)):
            pieces.append(piece)
            size += len(piece)
            if size > self.file_bytes:
                raise Refused("size")
        if time.monotonic() >= deadline:
            raise Refused("time")  # the cut looks like an end
        if answer.length:  # fewer bytes came than were announced
            raise Refused("connect")
        return b"".join(pieces)


@dataclass(frozen=True)
class _Target:
    """An address that was checked."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]


class _Pinned(http.client.HTTPConnection):
    """A connection that dials checked addresses only. The host's name is kept for the certificate and `Host`."""

    def __init__(self, target: _Target, deadline: float) -> None:
        super().__init__(target.host, target.port)
        self._target, self._deadline = target, deadline
        self._open: socket.socket | None = None  # `sock` is forgotten once a response has begun
        if target.scheme == "https":
            self.default_port = 443

    def connect(self) -> None:
        self.sock = self._open = self._dial()
        if self._target.scheme == "https":
            context = ssl.create_default_context()
            self.sock = self._open = context.wrap_socket(self.sock, server_hostname=self._target.host)

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Cuts the connection at `deadline`, however slowly and steadily its bytes come."""
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _dial(self) -> socket.socket:
        problem: OSError = TimeoutError()
        for address in self._target.addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                return socket.create_connection((address, self._target.port), timeout=left)
            except OSError as error:
                problem = error
        raise problem

    def _cut(self) -> None:
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)


def _canonical(host: str) -> bool:
    """Whether a host is an IPv4 address in its one usual spelling. IPv6 literals are never on a list of hosts."""
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False
