"""What the server adds and what it stands: latency, requests per second, overload, leaving clients, memory, kills.

    python benchmarks/serve_load.py latency            time to first token: the engine alone, and through HTTP
    python benchmarks/serve_load.py throughput         requests per second; --peer URL asks another server beside it
    python benchmarks/serve_load.py overload           ten times as many requests as there is room for
    python benchmarks/serve_load.py lag                how late the server's loop runs while 12 megapixels decode
    python benchmarks/serve_load.py disconnects        clients that leave: nothing may stay behind
    python benchmarks/serve_load.py images             different images: memory must not grow
    python benchmarks/serve_load.py kills              the engine is killed: found, told, replaced, no wrong answer
    python benchmarks/serve_load.py media              bad files: how fast they are refused, and what they cost

All with the small model inside, on this machine's CPU. Each prints one JSON object.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

ROOT = Path(__file__).parents[1]
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
START_S = 120.0
MIB = 2**20


class Server:
    """A running `foveal serve` and what /proc says of it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "foveal.cli.main", "serve", "--port", "0", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = (self.process.stdout or io.StringIO()).readline()
        self.url = line.split()[-1] if "serving on" in line else ""
        if not self.url:
            raise SystemExit("the server did not start")

    def pids(self, module: str | None = None) -> list[int]:
        """Its process, or its children that run `module`."""
        if module is None:
            return [self.process.pid]
        found = []
        for folder in Path("/proc").iterdir():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and module.encode() in words:
                found.append(int(folder.name))
        return found

    def memory(self) -> dict[str, int]:
        """Bytes by part that are the process's own: no mapped files, which it shares and which the system drops."""
        parts = {"server": None, "engine": "foveal.serve.engine_child", "decoders": "foveal.serve.decoder"}
        return {name: sum(resident(pid, "RssAnon") for pid in self.pids(module)) for name, module in parts.items()}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def resident(pid: int, name: str = "VmRSS") -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@asynccontextmanager
async def serving(*arguments: str) -> AsyncIterator[tuple[Server, httpx2.AsyncClient]]:
    server = Server(*arguments)
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=200)
    try:
        async with httpx2.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            yield server, client
    finally:
        server.stop()


def picture(seed: int, size: tuple[int, int] = (320, 240), kind: str = "JPEG") -> str:
    """A data URL of a picture like no other."""
    chance = random.Random(seed)
    image = Image.frombytes("RGB", (16, 12), chance.randbytes(16 * 12 * 3)).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(out.getvalue()).decode()


def looking(url: str, text: str = "Describe the image.", **more: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(values: list[float]) -> dict[str, float]:
    return {"p50_ms": round(rank(values, 0.5) * 1e3, 2), "p99_ms": round(rank(values, 0.99) * 1e3, 2)}


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    line = socket.create_connection((host, int(port)))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def plain_post(line: socket.socket, body: Any, *, until: bytes) -> bytes:
    """Sends a request as bytes and reads until `until` came: a client that costs next to nothing itself."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    line.sendall(head.encode() + b"\r\n\r\n" + text)
    answer = b""
    while until not in answer:
        piece = line.recv(65536)
        if not piece:
            raise SystemExit(f"the connection ended: {answer[:200]!r}")
        answer += piece
    return answer


async def figures(client: httpx2.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def settled(client: httpx2.AsyncClient) -> dict[str, float]:
    """Figures once nothing runs any more."""
    for _ in range(600):
        now = await figures(client)
        if not (
            now.get("foveal_requests_open") or now.get("foveal_engine_running") or now.get("foveal_engine_waiting")
        ):
            return now
        await asyncio.sleep(0.1)
    raise SystemExit(f"requests stay open: {now}")


async def latency(count: int) -> dict[str, Any]:
    """The same text request at the engine in this process and through HTTP, in turns."""
    import foveal
    from foveal.engine.engine import Engine

    model = foveal.load()
    engine = Engine(model, model.options)
    alone, through = [], []
    async with serving("--threads", "1") as (server, _):
        line = connected(server.url)
        for number in range(count + 20):
            messages = [{"role": "user", "content": f"Hello number {number}"}]
            begun = time.perf_counter()
            packed = model.process(messages)
            id = engine.add(packed, model.sampling.changed({"max_tokens": 1}))
            while not engine.step():
                pass
            alone.append(time.perf_counter() - begun)
            engine.abort(id)
            asked = {"messages": messages, "temperature": 0, "max_tokens": 1, "stream": True}
            begun = time.perf_counter()
            answer = plain_post(line, asked, until=b"data: ")
            through.append(time.perf_counter() - begun)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += line.recv(65536)
        line.close()
    alone, through = alone[20:], through[20:]
    added = rank(through, 0.5) - rank(alone, 0.5)
    return {"engine": milliseconds(alone), "http": milliseconds(through), "added_p50_ms": round(added * 1e3, 2)}


async def burst(client: httpx2.AsyncClient, path: str, bodies: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
    gate, spent, tokens = asyncio.Semaphore(at_once), [], 0

    async def one(body: dict[str, Any]) -> None:
        nonlocal tokens
        async with gate:
            begun = time.perf_counter()
            answer = await client.post(path, json=body)
            answer.raise_for_status()
            spent.append(time.perf_counter() - begun)
            tokens += answer.json()["usage"]["completion_tokens"]

    begun = time.perf_counter()
    await asyncio.gather(*(one(body) for body in bodies))
    total = time.perf_counter() - begun
    return {"requests_s": round(len(bodies) / total, 2), "tokens_s": round(tokens / total, 1), **milliseconds(spent)}


async def throughput(count: int, peer: str | None, peer_model: str | None) -> dict[str, Any]:
    """Text requests with 32 tokens of answer, 1 and 16 at once."""

    def bodies(shift: int, **more: Any) -> list[dict[str, Any]]:
        texts = [f"Tell me about number {shift + n}." for n in range(count)]
        return [
            {"messages": [{"role": "user", "content": t}], "temperature": 0, "max_tokens": 32, **more} for t in texts
        ]

    found: dict[str, Any] = {}
    async with serving("--threads", "2") as (_, client):
        await burst(client, CHAT, bodies(10**6, ignore_eos=True)[:8], 8)
        for at_once in (1, 16):
            found[f"foveal, {at_once} at once"] = await burst(
                client, CHAT, bodies(at_once * 1000, ignore_eos=True), at_once
            )
        if peer is None:
            for at_once in (1, 16):
                found[f"foveal, own length, {at_once} at once"] = await burst(
                    client, CHAT, bodies(at_once * 5000), at_once
                )
        if peer is not None:
            async with httpx2.AsyncClient(base_url=peer, timeout=300) as other:
                await burst(other, CHAT, bodies(10**6, model=peer_model)[:4], 4)
                for at_once in (1, 16):
                    name = f"{at_once} at once, answers end where the model ends them"
                    own = bodies(at_once * 9000)
                    found[f"foveal, {name}"] = await burst(client, CHAT, own, at_once)
                    theirs = [{**body, "model": peer_model} for body in own]
                    found[f"peer, {name}"] = await burst(other, CHAT, theirs, at_once)
    return found


async def overload(count: int) -> dict[str, Any]:
    """Ten times as many clients as there is room for, each with a picture."""
    async with serving("--threads", "1", "--max-num-seqs", "4", "--max-waiting", "4") as (server, client):
        await client.post(CHAT, json=looking(picture(0)))
        refused, done, wrong = [], 0, []

        def one(body: bytes) -> None:
            nonlocal done
            line = connected(server.url)
            with line:
                begun = time.perf_counter()
                answer = plain_post(line, body, until=b"\r\n\r\n")
                spent = time.perf_counter() - begun
            status = int(answer.split()[1])
            if status == 429:
                refused.append(spent)
            elif status == 200:
                done += 1
            else:
                wrong.append(status)

        bodies = [json.dumps(looking(picture(n), ignore_eos=True, max_tokens=64)).encode() for n in range(1, count + 1)]
        with ThreadPoolExecutor(80) as threads:
            list(threads.map(one, bodies))
        now = await settled(client)
        opened = now['foveal_media_total{kind="image"}']
    return {
        "refused": len(refused), **milliseconds(refused), "done": done, "others": wrong,
        "opened": opened, "opened_for_refused": opened - done - 1,
    }  # fmt: skip


async def lag(count: int) -> dict[str, Any]:
    """/health is asked every 10 ms while pictures of 12 megapixels are decoded."""
    large = [picture(n, (4000, 3000)) for n in range(4)]
    async with serving("--threads", "1") as (_, client):
        bodies = [json.dumps(looking(url, max_tokens=1)).encode() for url in large]
        await client.post(CHAT, content=bodies[0], headers={"content-type": "application/json"})
        waits, over = [], asyncio.Event()

        async def probe() -> None:
            while not over.is_set():
                begun = time.perf_counter()
                await client.get("/health")
                waits.append(time.perf_counter() - begun)
                await asyncio.sleep(0.01)

        prober = asyncio.create_task(probe())
        for number in range(count):
            pair = [bodies[(2 * number + k) % 4] for k in range(2)]
            sent = (client.post(CHAT, content=b, headers={"content-type": "application/json"}) for b in pair)
            await asyncio.gather(*sent)
        over.set()
        await prober
        now = await figures(client)
    name = "foveal_event_loop_lag_seconds_bucket"
    buckets = {k[len(name) + 5 : -2]: v for k, v in now.items() if k.startswith(name)}
    whole = buckets["+Inf"]
    bound = next(edge for edge, seen in buckets.items() if seen >= 0.99 * whole)
    return {"probes": len(waits), "health": milliseconds(waits), "loop_lag_p99_at_most_s": bound, "samples": whole}


async def disconnects(count: int) -> dict[str, Any]:
    """Clients that leave before, while and after their first token."""
    async with serving("--threads", "1") as (server, client):
        await client.post(CHAT, json=looking(picture(0)))
        before = await settled(client)
        files = {pid: descriptors(pid) for pid in server.pids() + server.pids("foveal.serve.engine_child")}
        chance, gate = random.Random(3), asyncio.Semaphore(16)

        async def one(number: int) -> None:
            body = {**(looking(picture(number % 50)) if number % 2 else HELLO), "max_tokens": 1000, "ignore_eos": True}
            body["stream"] = number % 3 != 0
            async with gate:
                try:
                    async with asyncio.timeout(chance.choice((0.001, 0.01, 0.05, 0.2))):
                        async with client.stream("POST", CHAT, json=body) as answer:
                            async for _ in answer.aiter_lines():
                                pass
                except TimeoutError:
                    pass

        begun = time.perf_counter()
        await asyncio.gather(*(one(n) for n in range(count)))
        left = time.perf_counter()
        after = await settled(client)
        rest = time.perf_counter() - left
        await asyncio.sleep(1)
        same = {k: after.get(f"foveal_engine_{k}", 0.0) for k in ("running", "waiting", "blocks_in_use")}
        grown = {pid: descriptors(pid) - n for pid, n in files.items()}
    return {
        "clients": count, "seconds": round(left - begun, 1), "at_rest_after_s": round(rest, 2), **same,
        "aborted": after["foveal_aborted_requests_total"] - before["foveal_aborted_requests_total"],
        "descriptors_grown": list(grown.values()),
    }  # fmt: skip


async def images(count: int) -> dict[str, Any]:
    """Images that are all different: with caches that the first few hundred fill, and with those that come by default
    and were filled by texts before, because images of this size take thousands to do so."""
    return {
        "bounded": await _images(count, "--cache-bytes", str(16 * MIB), "--vision-cache-bytes", str(2 * MIB)),
        "default": await _images(count, texts=400),
    }


async def _images(count: int, *flags: str, texts: int = 0) -> dict[str, Any]:
    """Memory by part after each eighth of the images, beside what the engine's two caches say that they hold.

    Before, up to `texts` long texts fill the memory for keys and values.
    """
    async with serving("--threads", "1", *flags) as (server, client):
        gate, seen, chance = asyncio.Semaphore(4), {}, random.Random(1)
        for _ in range(texts):
            body = {"prompt": [chance.randrange(32, 127) for _ in range(2000)], "max_tokens": 1}
            (await client.post("/v1/completions", json=body)).raise_for_status()
            if not (await settled(client))["foveal_engine_blocks_free"]:
                break

        async def one(number: int) -> None:
            async with gate:
                (await client.post(CHAT, json=looking(picture(number), max_tokens=1))).raise_for_status()

        step = max(1, count // 8)
        for first in range(0, count, step):
            await asyncio.gather(*(one(n) for n in range(first, first + step)))
            now = await settled(client)
            caches = now["foveal_engine_cache_bytes"] + now["foveal_engine_vision_bytes"]
            seen[first + step] = {**server.memory(), "caches": int(caches)}

    def rest(parts: dict[str, int]) -> int:
        return sum(parts.values()) - 2 * parts["caches"]  # the caches lie in the engine, which is counted too

    early, late = seen[2 * step], seen[max(seen)]
    held = {n: {k: round(v / MIB, 1) for k, v in m.items()} for n, m in seen.items()}
    whole = (sum(late.values()) - late["caches"]) / (sum(early.values()) - early["caches"])
    return {
        "images": max(seen), "mib": held, "rise_percent": round(100 * (whole - 1), 2),
        "rise_percent_without_caches": round(100 * (rest(late) / rest(early) - 1), 2),
    }  # fmt: skip


async def kills(count: int) -> dict[str, Any]:
    """The engine is killed in the middle of answers."""
    found, back, wrong, told = [], [], 0, 0
    async with serving("--threads", "1") as (server, client):
        right = (await client.post(CHAT, json=HELLO)).json()["choices"][0]["message"]["content"]
        for number in range(count):
            long = {**HELLO, "max_tokens": 1900, "ignore_eos": True}
            open_ones = [asyncio.create_task(client.post(CHAT, json=long)) for _ in range(4)]
            await asyncio.sleep(0.2 + 0.02 * number)
            os.kill(server.pids("foveal.serve.engine_child")[0], signal.SIGKILL)
            begun = time.perf_counter()
            for answer in await asyncio.gather(*open_ones):
                told += answer.status_code == 503
            found.append(time.perf_counter() - begun)
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.02)
            back.append(time.perf_counter() - begun)
            again = await client.post(CHAT, json=HELLO)
            wrong += again.status_code != 200 or again.json()["choices"][0]["message"]["content"] != right
    return {
        "kills": count, "open": 4 * count, "told_503": told, "wrong_answers": wrong,
        "told_after_s": round(max(found), 3), "ready_after_s": [round(statistics.median(back), 2), round(max(back), 2)],
    }  # fmt: skip


async def media(_: int) -> dict[str, Any]:
    """Bad files, one after the other."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.bad_media import corpus

    async with serving("--threads", "1", "--decoders", "1") as (server, client):
        await client.post(CHAT, json=looking(picture(0)))
        (decoder,) = server.pids("foveal.serve.decoder")
        before, spent, statuses = resident(decoder, "VmHWM"), {}, {}
        for name, data in corpus():
            url = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
            begun = time.perf_counter()
            answer = await client.post(CHAT, json=looking(url))
            spent[name] = time.perf_counter() - begun
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        same = server.pids("foveal.serve.decoder") == [decoder]
        rise = resident(decoder, "VmHWM") - before
        slowest = max(spent, key=lambda k: spent[k])
    return {
        "files": len(spent), "statuses": statuses, "slowest_ms": round(spent[slowest] * 1e3, 1), "slowest": slowest,
        "decoder_peak_rise_mib": round(rise / 2**20, 1), "decoder_lived": same,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checks: dict[str, tuple[Callable[..., Any], int]] = {
        "latency": (latency, 300), "throughput": (throughput, 64), "overload": (overload, 200), "lag": (lag, 20),
        "disconnects": (disconnects, 1000), "images": (images, 2000), "kills": (kills, 20), "media": (media, 0),
    }  # fmt: skip
    parser.add_argument("check", choices=checks)
    parser.add_argument("--count", type=int, help="how many requests")
    parser.add_argument("--peer", help="throughput: address of another server")
    parser.add_argument("--peer-model", help="throughput: the model's name there")
    arguments = parser.parse_args()
    check, count = checks[arguments.check]
    more = (arguments.peer, arguments.peer_model) if arguments.check == "throughput" else ()
    print(json.dumps({arguments.check: asyncio.run(check(arguments.count or count, *more))}))


if __name__ == "__main__":
    main()
