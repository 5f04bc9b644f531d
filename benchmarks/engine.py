"""Foveal beside its peers on Qwen2-VL-2B's shape with random weights, paired: the sides take turns in one run.

    benchmarks/peers.sh                                             # once: the peers' environments
    python benchmarks/random_weights.py qwen2_vl 2b                 # once; then benchmarks/sides/language_model.py
    OMP_NUM_THREADS=2 python benchmarks/engine.py decode1,decode8 ours vllm
    OMP_NUM_THREADS=2 python benchmarks/engine.py prefill1300,vision448,start,memory ours transformers
    python benchmarks/engine.py --table                             # all results -> benchmarks/results/engine.md

Cases and two or more sides. Every side is a process that is kept, and stopped (SIGSTOP) while another one works; who
begins changes from turn to turn. `start` and `memory` take a fresh process a turn. Results go to build/peers/results,
one file a run. On a machine with other work, `--alone 'COMMAND'` names a command that runs another one while it keeps
the others away (`flock FILE`, say): turns are timed only inside it, at most `--window` seconds at a time.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from engine_table import shown, table
from turns import Side, Window

ROOT = Path(__file__).parent.parent
PEERS = Path(os.environ.get("PEERS_DIR", ROOT / "build" / "peers"))
MODELS = PEERS / "models"
FOLDER = Path(os.environ.get("RANDOM_DIR", ROOT / "build" / "random")) / "qwen2_vl-2b"
SIDES = Path(__file__).parent / "sides"
RESULTS = PEERS / "results"

CASES: dict[str, dict[str, Any]] = {
    "decode1": {"do": "decode", "requests": 1, "context": 512, "steps": 12},
    "decode8": {"do": "decode", "requests": 8, "context": 256, "steps": 8},
    "prefill320": {"do": "prefill", "tokens": 320},
    "prefill1300": {"do": "prefill", "tokens": 1300},
    "vision448": {"do": "vision", "side_px": 448},
    "vision1036": {"do": "vision", "side_px": 1036},
    "first": {"do": "first", "side_px": 448, "tokens": 64},
}
WARM: dict[str, dict[str, Any]] = {
    "decode1": {"do": "decode", "requests": 1, "context": 64, "steps": 2},
    "decode8": {"do": "decode", "requests": 8, "context": 32, "steps": 2},
    "first": {"do": "first", "side_px": 448, "tokens": 64},
    "vision1036": {"do": "vision", "side_px": 448},
}
FRESH: dict[str, dict[str, Any]] = {
    "start": {"do": "prefill", "tokens": 64},  # from the start of the process to its first token, files in memory
    "memory": {
        "do": "whole",
        "side_px": 448,
        "tokens": 1300,
        "answer_tokens": 32,
    },  # the highest resident size of a process
}


BUSY = 0.1
"""Processors that others may keep busy during a turn, in the mean; a turn beside more is thrown away."""


def command(side: str) -> list[str]:
    """ours, ours-int8, ours-int4, transformers, openvino, openvino-int8, openvino-int4, vllm, llama-bf16, llama-q8_0,
    llama-q4_0."""
    name, _, form = side.partition("-")
    python = str(PEERS / name / "bin" / "python")
    if name == "ours":
        rounded = FOLDER.with_name(
            f"{FOLDER.name}-{form}"
        )  # `foveal convert --quantize FORM` has made it: opens at once
        if rounded.exists():
            return [sys.executable, str(SIDES / "ours.py"), str(rounded), "bf16"]
        return [sys.executable, str(SIDES / "ours.py"), str(FOLDER), form or "bf16"]
    if name == "transformers":
        return [sys.executable, str(SIDES / "transformers_side.py"), str(FOLDER)]
    if name == "openvino":
        return [python, str(SIDES / "openvino_side.py"), str(MODELS / side)]
    if name == "vllm":
        return [python, str(SIDES / "vllm_side.py"), str(MODELS / (f"lm-{form}" if form else "lm"))]
    if name == "llama":
        return [python, str(SIDES / "llama_side.py"), str(MODELS / f"lm-{form}.gguf")]
    sys.exit(f"unknown side {side!r}")


def opened(side: str) -> Side:
    return Side(side, command(side), RESULTS / f"{side}.log")


def conditions() -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=*"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        cpu = next((x.split(": ")[1] for x in text.splitlines() if "model name" in x), cpu)
        cpu += " with AMX" if "amx_bf16" in text else ""
    return f"{commit}, {time.strftime('%Y-%m-%d')}, {cpu}, {len(os.sched_getaffinity(0))} cores"


Found = dict[str, list[list[float]]]
"""Of every side, of every turn: seconds of its steps, or its two times, or its one time."""
Peaks = dict[str, int]


def compare(cases: list[str], names: list[str], given: argparse.Namespace) -> Iterator[tuple[str, Found, Peaks]]:
    """One case after the other, with sides that are started once."""
    sides: list[Side] = []
    try:
        with Window(given.loading or given.alone):
            for name in names:
                sides.append(opened(name))
        for case in cases:
            found, dropped = turns(case, sides, given)
            print(f"{case}: {dropped} turns were thrown away", file=sys.stderr, flush=True)
            yield case, found, {side.name: side.ask({"do": "peak"})["bytes"] for side in sides}
    finally:
        for side in sides:
            side.close()


def turns(case: str, sides: list[Side], given: argparse.Namespace) -> tuple[Found, int]:
    """What every side took, and how many turns were thrown away because others worked too."""
    found: Found = {side.name: [] for side in sides}
    longest, tried, kept, warm = 0.0, 0, 0, False
    while kept < given.turns and tried < 3 * given.turns:
        done: list[dict[str, list[float]]] = []
        with Window(given.alone) as window:
            for side in () if warm else sides:
                side.ask(WARM.get(case, CASES[case]))
            warm = True
            while kept + len(done) < given.turns and (not done or window.spent_s + longest < given.window):
                begun = time.monotonic()
                first = tried % len(sides)
                answers = {side.name: side.alone(CASES[case]) for side in [*sides[first:], *sides[:first]]}
                longest = max(longest, time.monotonic() - begun)
                tried += 1
                beside = {name: round(share, 2) for name, (_, share) in answers.items() if share > BUSY}
                if beside:
                    print(f"{case}: processors busy with other work: {beside}", file=sys.stderr, flush=True)
                    break
                done.append({name: answer["seconds"] for name, (answer, _) in answers.items()})
        if not window.kept:
            sys.exit(f"a turn takes {longest:.0f} s, for which the machine was not ours; take fewer sides at once")
        kept += len(done)
        for turn in done:
            for name, seconds in turn.items():
                found[name].append(seconds)
    if not kept:
        sys.exit(f"{case}: the machine was never free")
    return found, tried - kept


def fresh(case: str, names: list[str], given: argparse.Namespace) -> tuple[Found, Peaks]:
    """Turns of fresh processes; one before them is not counted, so that all files are in memory."""
    found: Found = {name: [] for name in names}
    peaks: dict[str, list[int]] = {name: [] for name in names}
    for turn in range(-1, given.turns):
        with Window(given.alone) as window:
            for name in names if turn % 2 else names[::-1]:
                begun = time.perf_counter()
                side = opened(name)
                try:
                    side.ask(FRESH[case])
                    seconds = time.perf_counter() - begun
                    peak = int(side.ask({"do": "peak"})["bytes"])
                finally:
                    side.close()
                if turn >= 0:
                    found[name].append([seconds])
                    peaks[name].append(peak)
        if not window.kept:
            sys.exit("the machine was not ours for a whole turn; take fewer sides at once")
    return found, {name: int(median(values)) for name, values in peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", help=f"joined by commas: {', '.join([*CASES, *FRESH])}")
    parser.add_argument("sides", nargs="*", help="the first is the one that the others are compared with")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--alone", type=shlex.split, default=[], help="command that keeps other work away")
    parser.add_argument("--loading", type=shlex.split, default=[], help="another one while sides are started")
    parser.add_argument("--window", type=float, default=60.0, help="begin no turn that may end after so many seconds")
    parser.add_argument("--table", action="store_true", help="write benchmarks/results/engine.md")
    given = parser.parse_args()
    if given.table:
        path = Path(__file__).parent / "results" / "engine.md"
        path.write_text(table([json.loads(p.read_text()) for p in RESULTS.glob("*.json")]), encoding="utf-8")
        print(path.read_text())
        return
    cases = (given.cases or "").split(",")
    if not set(cases) <= {*CASES, *FRESH} or len(given.sides) < 2:
        parser.error(f"name cases, of {', '.join([*CASES, *FRESH])}, and two or more sides")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped before the end"))  # so that no side is left behind
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = [case for case in cases if case in CASES]
    for found in compare(kept, given.sides, given) if kept else ():
        write(*found)
    for case in cases:
        if case in FRESH:
            write(case, *fresh(case, given.sides, given))


def write(case: str, found: Found, peaks: Peaks) -> None:
    result = {
        "case": case,
        "conditions": conditions(),
        "sides": {name: {"turns": found[name], "peak_bytes": peaks[name]} for name in found},
    }
    (RESULTS / f"{case}-{'-'.join(found)}.json").write_text(json.dumps(result, indent=1))
    for name, times in found.items():
        milliseconds = shown([1000 * median(t) for t in times])
        print(f"{case}, {name}: {milliseconds} ms, {peaks[name] / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
