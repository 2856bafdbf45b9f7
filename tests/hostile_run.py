"""A run's folder in which every text is an attack, a nuisance, or in another script, as a model may write one.

Out: the files that the viewer, the live view and the report read. `HOSTILE` are the texts; what would be executed calls
`injected(n)` or sets `window.injected`, loads from `elsewhere.invalid`, or opens a dialog.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

HOSTILE = {
    "script": "<script>window.injected = 1; alert(1)</script>",
    "event": "<img src=x onerror=\"window.injected = 2; alert(2)\"><svg onload='window.injected = 3'>",
    "breakout": "</pre></td></details></textarea></title></style></script>--><b onmouseover=alert(4)>out</b>\"'>",
    "network": '<img src="https://elsewhere.invalid/a.png"><link rel=stylesheet href="https://elsewhere.invalid/b.css">',
    "markdown": "[a](javascript:window.injected=5) ![x](https://elsewhere.invalid/c.png) $$\\href{javascript:1}{x}$$",
    "template": "{{constructor.constructor('window.injected=6')()}} ${window.injected=7} <%= 7 * 7 %>",
    "ansi": "\x1b[31mred\x1b[0m \x1b]0;title\x07 bell\x07 back\x08space \x00null \x9b31m",
    "chinese": "<think>三加五等于八，再减二得六。</think>答案是 \\boxed{6}。",  # noqa: RUF001
    "bidi": "\u202eright to left\u202c \u2066isolate\u2069 \u200fשלום\u200e \u200bzero width",  # noqa: RUF001
    "emoji": "👩‍👩‍👧‍👦 \U0001f3f3\ufe0f\u200d\U0001f308 Z̸̡̛͖̦a̸l̷g̴o̵ \ud7ff \ufffd \uffff",
    "long word": "word" * 2_000,
    "megabyte": "<b>line</b> of a thought that does not end\n" * 25_000,
}
"""Kind -> text."""
STEPS = 4


def write_hostile_run(folder: Path, completions: int = 4) -> Path:
    """Writes the run: every kind of text is the completion of one group, and stands in its other fields too."""
    folder.mkdir(parents=True)
    (folder / "picture.png").write_bytes(png(40, 30))
    lines = [
        _line(kind, text, record, sample)
        for record, (kind, text) in enumerate(HOSTILE.items())
        for sample in range(completions)
    ]
    _write_lines(folder / "completions.jsonl", lines)
    _write_lines(folder / "metrics.jsonl", [_metrics(step) for step in range(1, STEPS + 1)])
    alarm = {"step": 2, "name": HOSTILE["script"], "message": HOSTILE["event"], "advice": HOSTILE["network"]}
    _write_lines(folder / "alarms.jsonl", [alarm])
    progress = {
        "state": "failed",
        "phase": HOSTILE["event"],
        "step": STEPS,
        "max_steps": 9,
        "message": HOSTILE["script"],
    }
    (folder / "progress.json").write_text(json.dumps({**progress, "started": 1.0, "updated": 2.0}))
    (folder / "run.json").write_text(
        json.dumps(
            {
                "format": 1,
                "stage": "grpo",
                "model": HOSTILE["script"],
                "template": HOSTILE["breakout"],
                "datasets": [HOSTILE["event"]],
                "output_dir": str(folder),
                "started": "2026-01-01T00:00:00+00:00",
                "versions": {HOSTILE["script"]: HOSTILE["event"]},
                "arguments": {"system": HOSTILE["network"], "default_system": HOSTILE["bidi"]},
            }
        )
    )
    return folder


def _line(kind: str, text: str, record: int, sample: int) -> dict[str, Any]:
    short = text[:300]
    right = sample % 2 == 0
    return {
        "step": record % STEPS,
        "group": record // STEPS,
        "sample": sample,
        "source": f"{kind} {HOSTILE['script']}",
        "record": record,
        "question": f"{short} <image>",
        "images": ["picture.png", f"missing {HOSTILE['event']}.png"],
        "opening": "<think>\n",
        "completion": text if sample < 2 else f"{sample} {short}</think> \\boxed{{{short}}}",
        "ending": "stopped" if right else "truncated",
        "num_tokens": len(text) // 4,
        "policy_step": record % STEPS,
        "extracted": short,
        "gold": short,
        "answer_type": "text",
        "match": None,
        "outcome": "matched" if right else "mismatched",
        "rewards": {"accuracy": float(right), HOSTILE["event"]: 0.5},
        "reward": float(right) + 0.5,
        "advantage": 1.0 if right else -1.0,
    }


def _metrics(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "time": 1e9 + step, "loss": 0.1 * step, "reward": 0.2 * step} | {
        f"rewards/{HOSTILE['script']}": 0.5,
        "completions/length": 10.0 * step,
        "entropy": 1.0 / step,
    }


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def png(width: int, height: int) -> bytes:
    """A picture of a colour gradient."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (x * 6 % 256, y * 8 % 256, 90)) for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
