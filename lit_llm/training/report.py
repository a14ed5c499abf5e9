"""`report.html`, one file that opens offline, and `loss.png`."""

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from lit_llm.files import read_json_object, write_whole

CURVES = {
    "loss": ("train_loss", "val_loss"),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
    "tokens per second": ("tokens_per_second",),
    "peak memory in GB": ("peak_memory_gb",),
}

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222;background:#fff}
h1,h2{line-height:1.2}svg{width:100%;height:auto}pre{white-space:pre-wrap;overflow-wrap:anywhere}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1rem}figure{margin:0}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
@media(max-width:40rem){tr:first-child{display:none}tr{display:block;border-bottom:1px solid #ddd;padding:.5rem 0}
td{display:block;border:0;padding:.1rem 0}td::before{content:attr(data-label) ": ";color:#666}}
"""


def write_report(
    out_dir: Path,
    title: str,
    summary: Sequence[str],
    data: str,
    changed: Sequence[tuple[str, Any]],
    answers: Sequence[tuple[str, str, str, str]],
    started_as: str = "base",
) -> None:
    """Write both files next to `metrics.csv`.

    Args:
        summary: Lines about the end of the run.
        data: Counts over the data.
        changed: Flags and values that differ from the defaults.
        answers: Rows of prompt, reference, answers before and after finetuning.
        started_as: Name of the model before finetuning.
    """
    with (out_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    write_whole(out_dir / "loss.png", _plot(rows, "loss", "png"))
    curves = "".join(f"<figure>{_svg(rows, name)}</figure>" for name in CURVES)
    environment = read_json_object(out_dir / "environment.json", advice="Delete it, and resume the run")
    parts = [
        f"<h1>{escape(title)}</h1><ul>{''.join(f'<li>{escape(line)}</li>' for line in summary)}</ul>",
        f'<h2>Curves</h2><div class="curves">{curves}</div>',
        _table("Answers to held-out prompts", ("prompt", "reference", started_as, "finetuned"), answers) if answers else "",
        f"<h2>Data</h2><pre>{escape(data)}</pre>",
        _table("Settings that differ from the defaults", ("option", "value"), changed),
        f"<h2>Environment</h2><pre>{escape(yaml.safe_dump(environment, sort_keys=False))}</pre>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    write_whole(out_dir / "report.html", page)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = (zip(head, row, strict=True) for row in rows)
    cells = ("".join(f'<td data-label="{escape(name)}">{escape(str(cell))}</td>' for name, cell in line) for line in lines)
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<h2>{escape(title)}</h2><table><tr>{header}</tr>{body}</table>"


def _svg(rows: Sequence[dict[str, str]], name: str) -> str:
    text = _plot(rows, name, "svg").decode("utf-8")
    return text[text.index("<svg") :]  # without the XML header, which names an address


def _plot(rows: Sequence[dict[str, str]], name: str, kind: str) -> bytes:
    """Image of one group of columns over steps. The object interface: no window, no state shared with a caller's plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column in CURVES[name]:
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), label=column, marker="o" if len(points) < 20 else "", markersize=3)
    axes.set_xlabel("step")
    axes.set_title(name)
    if len(CURVES[name]) > 1:
        axes.legend()
    image = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None  # no date: equal runs give equal pictures
    figure.savefig(image, format=kind, dpi=150, metadata=metadata)
    return image.getvalue()


def changed_options(options: Any, defaults: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Flags and values of a dataclass of options, groups included, that differ from `defaults`."""
    found: list[tuple[str, Any]] = []
    for name, value in vars(options).items():
        default = getattr(defaults, name)
        if hasattr(value, "rules"):
            found += changed_options(value, default, f"{prefix}{name}.")
        elif value != default:
            found.append((f"--{prefix}{name}", value))
    return found
