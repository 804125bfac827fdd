"""`make bench`, or `python -m benchmarks.run [GROUP ...] [--threads N] [--list]`: rows of ratios to the peers.

Writes results.json (rows measured before stay until they are measured again) and results.md beside this file. Groups:
convolutions, unet, scores, processes, autoencoder, vq, stylegan, dit, samplers, stable_diffusion.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import pairing
from benchmarks.pairing import Row, rate

HERE = Path(__file__).resolve().parent
GROUPS = (
    "convolutions", "unet", "scores", "processes", "autoencoder", "vq", "stylegan", "dit", "samplers", "stable_diffusion",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="on both sides (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, and its computing time: for a machine that others use too"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and results.md")
    parser.add_argument(
        "--quick", action="store_true", help="one round of each, to see that it runs; writes no results"
    )
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    given = parser.parse_args()
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"unknown group {sorted(unknown)[0]!r}; choose from {', '.join(GROUPS)}")
    if given.list:
        print("\n".join(GROUPS))
        return
    if given.cpu_time:
        given.threads, pairing.clock = 1, pairing.cpu_seconds
    torch.set_num_threads(given.threads)
    machine = about()
    print(f"{machine['processor']}, {given.threads} threads, {rate() / 1e9:.0f} GFLOP/s on a 2048^3 product")
    print("ratio: ours over theirs, median (smallest to largest) of alternating rounds; share: of that rate\n")
    pairing.quick = given.quick
    given.out.mkdir(parents=True, exist_ok=True)
    for group in given.groups or GROUPS:
        for row in importlib.import_module(f"benchmarks.{group}").rows():
            print(line(row), flush=True)
            if not given.quick:
                keep(
                    given.out,
                    {**row.json(), "threads": given.threads, "clock": "cpu" if given.cpu_time else "wall"},
                    machine,
                )


def line(row: Row) -> str:
    aim = "" if row.aim is None else f" (aim {row.aim:g}{'' if row.ratio <= row.aim else ', MISSED'})"
    shares = "" if row.share is None else f", {row.gflop:.3g} GFLOP, share {row.share:.2f} to {row.peer_share:.2f}"
    difference = "" if row.difference is None else f", difference {row.difference:.1e}"
    state = "; DISTURBED" if row.disturbed else ""
    return (
        f"{row.group}: {row.name}: {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f}){aim}, {shown(row.ours)} to "
        f"{shown(row.theirs)} of {row.peer}{shares}{difference}, {row.rounds} rounds, {row.left_out} left out{state}"
        + (f"; {row.note}" if row.note else "")
    )


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def about() -> dict[str, Any]:
    import importlib.metadata as packages

    names = (
        "torch",
        "numpy",
        "diffusers",
        "denoising-diffusion-pytorch",
        "pytorch-fid",
        "torch-fidelity",
        "torchmetrics",
        "scipy",
    )
    versions = {}
    for name in names:
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            pass
    return {"processor": processor(), "cpu_capability": torch.backends.cpu.get_cpu_capability(), "versions": versions}


def processor() -> str:
    try:
        found = [
            x.split(":", 1)[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ]
    except OSError:
        found = []
    return f"{found[0]} x {len(found)}" if found else platform.processor() or platform.machine()


def keep(folder: Path, row: dict[str, Any], machine: dict[str, Any]) -> None:
    """Puts the row in the place of one of the same name, and writes both files."""
    file = folder / "results.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    row["machine"] = machine
    name = (row["group"], row["name"], row["peer"].split()[0])
    places = [i for i, old in enumerate(rows) if (old["group"], old["name"], old["peer"].split()[0]) == name]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    file.write_text(json.dumps({"format": 1, "rows": rows}, indent=1) + "\n")
    (folder / "results.md").write_text(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["# Measured against the peers", "", "Made by `make bench`; what the columns mean is in README.md.", ""]
    machines = {json.dumps(row["machine"], sort_keys=True): row for row in rows}
    for row in machines.values():
        versions = ", ".join(f"{k} {v}" for k, v in row["machine"]["versions"].items())
        lines.append(f"{row['machine']['processor']} ({row['machine']['cpu_capability']}); {versions}.")
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [
            "",
            f"## {group}",
            "",
            "| work | peer | ratio | range | aim | ours | theirs | GFLOP | share, theirs | difference | notes |",
        ]
        lines.append("|" + "---|" * 11)
        for row in (row for row in rows if row["group"] == group):
            has = row["share"] is not None
            state = "disturbed by other processes" if row["disturbed"] else ""
            clock = "" if row["clock"] == "wall" else "computing time of one thread"
            notes = "; ".join(filter(None, (row["note"], state, clock)))
            cells = (
                row["name"], row["peer"], f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}",
                "" if row["aim"] is None else f"{row['aim']:g}", shown(row["ours"]), shown(row["theirs"]),
                f"{row['gflop']:.3g}" if has else "", f"{row['share']:.2f}, {row['peer_share']:.2f}" if has else "",
                "" if row["difference"] is None else f"{row['difference']:.0e}", notes,
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
