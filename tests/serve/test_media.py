"""Attacks on media addresses: every one is refused, and a listener that stands for the inside sees no connection."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from foveal.core.errors import ConfigError
from foveal.serve.media import REFUSED, Media, Refused, is_public

GOOD = "127.0.0.1"  # stands for a public address; all other addresses of this machine stand for the inside
WAIT_S = 10.0


class Listener:
    """Answers every connection with `reply` and counts them."""

    def __init__(self, address: str, reply: bytes = b"", port: int = 0, drip_s: float = 0.0) -> None:
        self.socket = socket.create_server((address, port), family=socket.AF_INET)
        self.port = int(self.socket.getsockname()[1])
        self.reply, self.drip_s = reply, drip_s
        self.asked: list[bytes] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(WAIT_S)
                self.asked.append(b"")
                try:
                    while b"\r\n\r\n" not in self.asked[-1]:
                        piece = connection.recv(4096)
                        if not piece:
                            break
                        self.asked[-1] += piece
                    step = 1 if self.drip_s else len(self.reply) or 1
                    for at in range(0, len(self.reply), step):
                        connection.sendall(self.reply[at : at + step])
                        time.sleep(self.drip_s)
                except OSError:
                    continue

    def close(self) -> None:
        with socket.socket() as wake:  # closing alone does not end accept
            wake.settimeout(WAIT_S)
            wake.connect(self.socket.getsockname())
            self.socket.close()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@contextmanager
def listening(*arguments: object, **options: object) -> Iterator[Listener]:
    listener = Listener(*arguments, **options)  # type: ignore[arg-type]
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture(scope="module")
def canary() -> Iterator[Listener]:
    """What must never be asked. It listens on all loopback addresses but stands for the inside only."""
    with listening("0.0.0.0", b"HTTP/1.0 200 OK\r\n\r\nsecret") as listener:
        yield listener


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.0 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def table(names: dict[str, Sequence[str]]):
    def resolver(host: str, port: int) -> Sequence[str]:
        if host not in names:
            raise OSError("unknown host")
        return names[host]

    return resolver


# Addresses behind an allowed name that are none of the internet's.
INSIDE = """127.0.0.1 127.0.0.2 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.254
192.168.0.1 192.168.255.255 169.254.169.254 169.254.170.2 100.64.0.1 100.100.100.200 168.63.129.16 192.0.0.192
192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 ::1 :: ::127.0.0.1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b:1::a00:1 2002:7f00:1:: 2001:0:7f00:1:: fe80::1 fe80::1%lo fc00::1 fd00:ec2::254 ff02::1 ff0e::1
2001:db8::1 100::1 not-an-address""".split()

# What stands in a URL. P is the canary's port; the allow list holds good.test:P, good.test and 127.0.0.1:1.
WRITTEN = """http://127.0.0.1:P/ http://127.1:P/ http://127.0.1:P/ http://2130706433:P/ http://0x7f000001:P/
http://0x7f.0x0.0x0.0x1:P/ http://0177.0.0.1:P/ http://017700000001:P/ http://127.0.0.1.:P/ http://127.00.00.01:P/
http://0:P/ http://0.0.0.0:P/ http://localhost:P/ http://LOCALHOST:P/ http://localhost.:P/ http://localhost.localdomain:P/
http://[::1]:P/ http://[::]:P/ http://[::ffff:127.0.0.1]:P/ http://[::ffff:7f00:1]:P/ http://[0:0:0:0:0:ffff:127.0.0.1]:P/
http://[::127.0.0.1]:P/ http://[::1%25lo]:P/ http://[64:ff9b::7f00:1]:P/ http://good.test@127.0.0.1:P/
http://good.test:P@127.0.0.1:P/ http://good.test%40127.0.0.1:P/ http://127.0.0.1:P#@good.test/
http://127.0.0.1:P?@good.test/ http://127.0.0.1:P\\@good.test:P/ http://good.test:P\\@127.0.0.1:P/
http:\\\\127.0.0.1:P\\ http:/127.0.0.1:P/ http:127.0.0.1:P/ http:///127.0.0.1:P/ //127.0.0.1:P/ ///127.0.0.1:P/ http://good.test.127.0.0.1.nip.test:P/
http://127.0.0.1.good.test:P/ http://xgood.test:P/ http://good.testx:P/ http://good.test.:P/ http://good%2Etest:P/
http://good.test:P:80/ http://good.test:0P/ http://good.test:99999/ http://good.test:-1/ http://good.test:/
http://①②⑦.0.0.1:P/ http://127。0。0。1:P/ http://ⓛocalhost:P/ http://gооd.test:P/ ftp://127.0.0.1:P/
gopher://127.0.0.1:P/_GET dict://127.0.0.1:P/ ws://127.0.0.1:P/ ldap://127.0.0.1:P/ jar:http://127.0.0.1:P/!/
view-source:http://127.0.0.1:P/ url:http://127.0.0.1:P/ javascript:1 blob:http://127.0.0.1:P/ unix:///var/run/x.sock
http+unix://%2Fvar%2Frun/ HTTP://127.0.0.1:P/ hTTps://127.0.0.1:P/ https://localhost:P/ http://metadata.google.internal/
http://169.254.169.254/latest/meta-data/ http://[fd00:ec2::254]/ http://100.100.100.200/ http://kubernetes.default.svc/
http://good.test:P/a%0d%0aHost:%20x""".split()
SPOKEN = [
    "http://good.test:P/ x", "http://good.test\t:P/", "http://good.test:P/\r\nHost: 127.0.0.1", " http://127.0.0.1:P/",
    "http://127.0.0.1\0.good.test:P/", "http://127.0.0.1:P/\n", "\thttp://127.0.0.1:P/", "", "/etc/passwd",
    "../secret.png", "image.png",
]  # fmt: skip


def test_the_corpus_is_large():
    assert len(INSIDE) + len(WRITTEN) + len(SPOKEN) >= 80


def refused(media: Media, url: str) -> str:
    with pytest.raises(Refused) as caught:
        media.read(url)
    assert str(caught.value) == REFUSED[caught.value.code]
    return caught.value.code


def test_names_with_inner_addresses_are_not_dialled(canary):
    for address in INSIDE:
        for addresses in ([address], ["93.184.216.34", address]):
            media = Media(hosts=frozenset((f"good.test:{canary.port}",)), resolver=table({"good.test": addresses}))
            assert refused(media, f"http://good.test:{canary.port}/x.png") == "address", address
            assert refused(media, f"https://good.test:{canary.port}/x.png") == "address", address
    assert canary.asked == []


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def test_ways_of_writing_a_host_do_not_get_past_the_list(canary):
    hosts = frozenset((f"good.test:{canary.port}", "good.test", "127.0.0.1:1"))
    media = Media(hosts=hosts, resolver=table({}), permitted=lambda _: True)
    for text in [*WRITTEN, *SPOKEN]:
        url = text.replace("P", str(canary.port))
        code = refused(media, url)
        # Only what names the allowed host gets as far as its name server, which knows nothing.
        assert code in ("url", "host", "scheme") or (code == "resolve" and url.startswith("http://good.test")), url
    assert canary.asked == []


def test_remote_media_are_off_unless_hosts_are_allowed(canary):
    for text in [*WRITTEN, *SPOKEN]:
        assert refused(Media(), text.replace("P", str(canary.port))) in ("remote", "scheme")
    assert canary.asked == []


def fetcher(*ports: int, names: dict[str, Sequence[str]] | None = None, **options: object) -> Media:
    return Media(
        hosts=frozenset(f"good.test:{port}" for port in ports),
        resolver=table(names or {"good.test": [GOOD]}),
        permitted=lambda address: address == GOOD,
        **{"fetch_s": WAIT_S, **options},  # type: ignore[arg-type]
    )


def test_a_file_is_fetched_and_its_host_is_named():
    with listening(GOOD, reply(b"picture")) as server:
        assert fetcher(server.port).read(f"http://Good.Test:{server.port}/a/b.png?c=d#e") == b"picture"
        asked = server.asked[0].decode()
    assert asked.startswith("GET /a/b.png?c=d HTTP/1.1\r\n")
    assert f"Host: good.test:{server.port}" in asked


def test_a_name_is_resolved_once_and_that_address_is_dialled(canary):
    answers = [[GOOD], ["127.0.0.3"], ["127.0.0.4"]]
    asked = []

    def turning(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    with listening(GOOD, reply(b"first")) as server:
        media = Media(
            hosts=frozenset((f"good.test:{server.port}",)), resolver=turning, permitted=lambda address: address == GOOD
        )
        assert media.read(f"http://good.test:{server.port}/") == b"first"
        assert asked == ["good.test"]
        assert refused(media, f"http://good.test:{server.port}/") == "address"  # the next request asks again
    assert canary.asked == []


REDIRECTS = """http://127.0.0.1:P/ http://127.0.0.2:P/ //127.0.0.2:P/ http://localhost:P/ http://2130706433:P/
http://[::1]:P/ http://bad.test:P/ https://bad.test:P/ ftp://good.test/ file:///etc/passwd gopher://127.0.0.1:P/
data:image/png;base64,AAAA
http://good.test@127.0.0.2:P/ http://169.254.169.254/ \\\\127.0.0.2:P\\ http:\\\\127.0.0.2:P""".split()


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_redirects_go_through_the_same_door(canary, status):
    for target in REDIRECTS:
        location = target.replace("P", str(canary.port))
        with listening(GOOD, reply(b"", f"Location: {location}", status=status)) as server:
            assert refused(fetcher(server.port), f"http://good.test:{server.port}/") in ("redirect", "host", "url")
    assert canary.asked == []


def test_a_redirect_to_an_allowed_name_is_checked_again(canary):
    with listening(GOOD, reply(b"", f"Location: http://inner.test:{canary.port}/", status="302 x")) as server:
        media = Media(
            hosts=frozenset((f"good.test:{server.port}", f"inner.test:{canary.port}")),
            resolver=table({"good.test": [GOOD], "inner.test": ["127.0.0.2"]}),
            permitted=lambda address: address == GOOD,
        )
        assert refused(media, f"http://good.test:{server.port}/") == "address"
    assert canary.asked == []


def test_redirects_are_followed_three_times():
    with (
        listening(GOOD, reply(b"there")) as last,
        listening(GOOD, reply(b"", f"Location: http://good.test:{last.port}/x", status="302 x")) as first,
    ):
        assert fetcher(first.port, last.port).read(f"http://good.test:{first.port}/") == b"there"
    with listening(GOOD, reply(b"", "Location: /again", status="302 x")) as circle:
        assert refused(fetcher(circle.port), f"http://good.test:{circle.port}/") == "redirect"
        assert len(circle.asked) == 4


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(b"x" * 101), "size"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 101, "size"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"30\r\n"
            + b"x" * 48
            + b"\r\n"
            + b"60\r\n"
            + b"x" * 96,
            "size",
        ),
        (reply(b"x", status="404 Not Found"), "status"),
        (reply(b"x", status="206 Partial Content"), "status"),
        (reply(b"x", "Content-Encoding: gzip"), "status"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nshort", "connect"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: -5\r\n\r\n" + b"x" * 200, "size"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "connect"),
        (b"", "connect"),
        (b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n", "connect"),
    ],
)
def test_answers_that_are_no_file(answer, code):
    with listening(GOOD, answer) as server:
        assert refused(fetcher(server.port, file_bytes=100), f"http://good.test:{server.port}/") == code


@pytest.mark.parametrize(
    "answer", [reply(b"x" * 100), b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100, b"HTTP/1.0 200 OK\r\nA: " + b"x" * 100]
)
def test_slow_answers_are_cut(answer):
    with listening(GOOD, answer, drip_s=0.05) as server:
        begun = time.monotonic()
        assert refused(fetcher(server.port, fetch_s=0.3), f"http://good.test:{server.port}/") == "time"
        assert time.monotonic() - begun < WAIT_S / 2


def test_files_are_off_unless_there_is_a_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert refused(Media(), f"file://{tmp_path}/a.png") == "files"


def test_files_come_from_one_folder_after_all_links(tmp_path):
    folder, outside = tmp_path / "media", tmp_path / "secret.png"
    (folder / "deep").mkdir(parents=True)
    outside.write_bytes(b"secret")
    (folder / "a b.png").write_bytes(b"picture")
    (folder / "large.png").write_bytes(b"x" * 101)
    (folder / "inner").symlink_to(folder / "a b.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "deep/up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2/x.png").write_bytes(b"neighbour")
    media = Media(folder=folder, file_bytes=100)
    assert media.read(f"file://{folder}/a%20b.png") == b"picture"
    assert media.read(f"FILE://{folder}/deep/../inner") == b"picture"
    assert refused(media, f"file://{folder}/large.png") == "size"
    bad = """F/../secret.png F/%2e%2e/secret.png F/link.png F/deep/up/secret.png F/loop F/pipe F F/deep F/none.png
    T/media2/x.png
    /etc/passwd /proc/self/environ /dev/zero F/a%20b.png%00.jpg localhostF/a%20b.png F/..%2fsecret.png""".split()
    for path in bad:
        url = "file://" + path.replace("F", str(folder)).replace("T", str(tmp_path))
        assert refused(media, url) == "file", url
    for url in ("file:a.png", "file:/etc/passwd", "file:////etc/passwd", "file://host/share", r"file:\\host\share"):
        assert refused(media, url) == "file", url


def test_data_urls_pass_as_they_are():
    assert Media().read("data:image/png;base64,AAAA") == "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    "host", ["http://good.test", "good.test/", "*", "a b", "good.test:x", "GOOD.TEST", "[::1]", "010.1.1.1", "1"]
)
def test_a_wrong_list_of_hosts_is_an_error(host):
    with pytest.raises(ConfigError, match="allowed media domain"):
        Media(hosts=frozenset((host,)))


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        Media(folder=tmp_path / "none")
