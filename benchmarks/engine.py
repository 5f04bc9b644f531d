"""Foveal beside its peers on Qwen2-VL-2B's shape with random weights, paired: the sides take turns in one run.

    benchmarks/peers.sh                                             # once: the peers' environments
    python benchmarks/random_weights.py qwen2_vl 2b                 # once; then benchmarks/sides/language_model.py
    OMP_NUM_THREADS=2 python benchmarks/engine.py decode1 ours transformers openvino vllm
    python benchmarks/engine.py --table                             # all results -> benchmarks/results/engine.md

A case (decode1, decode8, prefill, first, start) and two or more sides. Every side is a process that is kept, and
stopped (SIGSTOP) while another one works; who begins changes from turn to turn. Results go to build/peers/results,
one file a run.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS = Path(os.environ.get("PEERS_DIR", ROOT / "build" / "peers"))
MODELS = PEERS / "models"
FOLDER = Path(os.environ.get("RANDOM_DIR", ROOT / "build" / "random")) / "qwen2_vl-2b"
SIDES = Path(__file__).parent / "sides"
RESULTS = PEERS / "results"

CASES: dict[str, dict[str, Any]] = {
    "decode1": {"do": "decode", "requests": 1, "context": 512, "steps": 12},
    "decode8": {"do": "decode", "requests": 8, "context": 256, "steps": 8},
    "prefill": {"do": "prefill", "tokens": 320},
    "first": {"do": "first", "side_px": 448, "tokens": 64},
}
WARM: dict[str, dict[str, Any]] = {
    "decode1": {"do": "decode", "requests": 1, "context": 32, "steps": 2},
    "decode8": {"do": "decode", "requests": 8, "context": 16, "steps": 2},
    "prefill": {"do": "prefill", "tokens": 64},
    "first": {"do": "first", "side_px": 112, "tokens": 16},
}


def command(side: str) -> list[str]:
    """ours, ours-int8, ours-int4, transformers, openvino, openvino-int8, openvino-int4, vllm, llama-bf16, llama-q8_0,
    llama-q4_0."""
    name, _, form = side.partition("-")
    python = str(PEERS / name / "bin" / "python")
    if name == "ours":
        return [sys.executable, str(SIDES / "ours.py"), str(FOLDER), *([form] if form else [])]
    if name == "transformers":
        return [sys.executable, str(SIDES / "transformers_side.py"), str(FOLDER)]
    if name == "openvino":
        return [python, str(SIDES / "openvino_side.py"), str(MODELS / side)]
    if name == "vllm":
        return [python, str(SIDES / "vllm_side.py"), str(MODELS / "lm")]
    if name == "llama":
        return [python, str(SIDES / "llama_side.py"), str(MODELS / f"lm-{form}.gguf")]
    sys.exit(f"unknown side {side!r}")


class Side:
    """A process of one side, stopped unless it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        begun = time.perf_counter()
        log = (RESULTS / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            command(name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        if "ready" not in self._answer():
            sys.exit(f"{name} did not start; see {log.name}")
        self.ready_s = time.perf_counter() - begun
        self._signal(signal.SIGSTOP)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line.strip() else {}

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)


def conditions() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), cpu)
    return f"{commit}, {time.strftime('%Y-%m-%d')}, {cpu}, {len(os.sched_getaffinity(0))} cores"


def compare(case: str, names: list[str], turns: int, limit_s: float) -> dict[str, Any]:
    RESULTS.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    sides = [Side(name) for name in names]
    try:
        for side in sides:
            side.ask(WARM[case])
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for turn in range(turns):
            if turn > 1 and time.monotonic() - begun > limit_s:
                break
            for step in range(len(sides)):
                side = sides[(turn + step) % len(sides)]
                answer = side.ask(CASES[case])
                if "seconds" not in answer:
                    sys.exit(f"{side.name}: {answer}; see {RESULTS / side.name}.log")
                found[side.name].append(answer["seconds"])
        return {
            "case": case,
            "conditions": conditions(),
            "sides": {
                side.name: {
                    "turns": found[side.name],
                    "peak_bytes": side.ask({"do": "peak"}).get("bytes"),
                    "ready_s": side.ready_s,
                }
                for side in sides
            },
        }
    finally:
        for side in sides:
            side.close()


def start(names: list[str], turns: int) -> dict[str, Any]:
    """From starting the process to the first token of a prompt of 16 tokens, files in the page cache."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    peaks: dict[str, int] = {}
    for turn in range(turns):
        for name in names if turn % 2 else names[::-1]:
            begun = time.perf_counter()
            side = Side(name)
            side.ask({"do": "prefill", "tokens": 16})
            found[name].append([time.perf_counter() - begun])
            peaks[name] = int(side.ask({"do": "peak"})["bytes"])
            side.close()
    sides = {name: {"turns": found[name], "peak_bytes": peaks[name], "ready_s": None} for name in names}
    return {"case": "start", "conditions": conditions(), "sides": sides}


def table() -> str:
    """All results as a page: the median of each side with its range over turns, and the ratio of each turn."""
    lines = [
        "# Foveal beside its peers: Qwen2-VL-2B's shape, random weights, two threads",
        "",
        "Every row is one run in which the sides took turns (`benchmarks/engine.py CASE SIDE ...`, alone on the",
        "machine); milliseconds are the median over turns, in brackets the range; the ratio is the peer's time over",
        "ours in the same turn, median and range. Peers other than transformers run the language model alone.",
        "",
        "| case | peer | ours ms | peer ms | ratio | peak memory ours / peer | conditions |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        own, *others = result["sides"]
        indices = (0, 1) if result["case"] == "first" else (None,)
        for index in indices:
            mine = _times(result["sides"][own], index)
            label = result["case"] + ("" if not index else ", same again")
            for other in others:
                theirs = _times(result["sides"][other], index)
                ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
                memory = " / ".join(f"{(result['sides'][s]['peak_bytes'] or 0) / 1e9:.1f} GB" for s in (own, other))
                lines.append(
                    f"| {label}, {own} | {other} | {_range(mine)} | {_range(theirs)} | **{median(ratios):.2f}x** "
                    f"({min(ratios):.2f} to {max(ratios):.2f}) | {memory} | {result['conditions']} |"
                )
    return "\n".join(lines) + "\n"


def _times(side: dict[str, Any], index: int | None) -> list[float]:
    """Milliseconds of each turn: the median of its steps, or one of its two times."""
    return [1000 * (median(turn) if index is None else turn[index]) for turn in side["turns"]]


def _range(values: list[float]) -> str:
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=[*CASES, "start"])
    parser.add_argument("sides", nargs="*", help="the first is the one that the others are compared with")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--limit", type=float, default=100.0, help="begin no further turn after so many seconds")
    parser.add_argument("--table", action="store_true", help="write benchmarks/results/engine.md")
    given = parser.parse_args()
    if given.table:
        path = Path(__file__).parent / "results" / "engine.md"
        path.write_text(table(), encoding="utf-8")
        print(path.read_text())
        return
    if not given.case or len(given.sides) < 2:
        parser.error("name a case and two or more sides")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped before the end"))  # so that no side is left behind
    turns, names = given.turns, given.sides
    result = start(names, turns) if given.case == "start" else compare(given.case, names, turns, given.limit)
    path = RESULTS / f"{given.case}-{'-'.join(names)}.json"
    path.write_text(json.dumps(result, indent=1))
    for name, side in result["sides"].items():
        times = [1000 * median(t) for t in side["turns"]]
        print(name, _range(times), "ms", side["peak_bytes"], side["ready_s"])


if __name__ == "__main__":
    main()
