"""Measure everything that needs a GPU, and write the table of docs/performance.md: python scripts/benchmark_gpu.py

    python scripts/benchmark_gpu.py --config configs/voc07s.yaml data.root=/data
    python scripts/benchmark_gpu.py --only step,loader --batch-size 32,128

    step       a training step: eager, compiled, as a CUDA graph, against torchvision
    loader     batches from as many loader processes as there are cores
    precision  a short training in each precision: images/s, and the loss that it reaches
    tests      the tests that need a GPU: among others, that a step never waits for the device
    shared     two processes on one GPU, which must be refused in one line; with several GPUs, two processes train
    run        scripts/new_config.py plans --minutes of training, and train.py runs it: mAP and images/s

Each part runs the project's own commands as subprocesses, so that one that fails or runs out of memory costs only its own
figures; its error line becomes its result. The results are added to a JSON file after each part. `--only` repeats some of them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd.config import load_config
from ssd.system.arguments import Parser, names_of, several, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.files import write_text

ROOT = Path(__file__).resolve().parent.parent
HEADING = "## GPU"
BATCH_SIZES = [32, 128, 256]
LOG_EVERY = 10  # iterations between records of a training
Results = list[dict[str, Any]]  # of one part: each a row of the table, with the keys what, result and more


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    load_config(options.config, options.overrides)  # report mistakes before the first measurement
    results = read_results(options.json)
    if options.docs and not options.docs.is_file():
        raise UsageError(f"--docs {options.docs}: no such file")
    results["machine"] = machine(options.device)
    print(results["machine"], flush=True)
    for name in options.only:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = PARTS[name](options, Path(folder))
        for row in results[name]:
            print(f"  {row['what']}: {row['result']}", flush=True)
        write_text(options.json, json.dumps(results, indent=1) + "\n")
    if options.docs:
        write_text(options.docs, with_table(options.docs.read_text("utf-8"), table(results)))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config", default="configs/voc07s.yaml", metavar="FILE", help="for the photos")
    parser.add_argument("--device", default="cuda", help="cuda | cpu, for a test of this command (cuda)")
    parser.add_argument("--only", type=names_of(PARTS), default=list(PARTS), metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--batch-size", type=several(whole_number(1)), default=BATCH_SIZES, metavar="N,...", help="32,128,256")
    parser.add_argument("--rounds", type=whole_number(1), default=20, help="measured rounds of a step (20)")
    parser.add_argument("--iterations", type=whole_number(1), default=200, help="of the short trainings (200)")
    parser.add_argument("--minutes", type=whole_number(1), default=20, help="of the long training (20)")
    parser.add_argument("--json", type=Path, default=Path("benchmark_gpu.json"), metavar="FILE", help="benchmark_gpu.json")
    parser.add_argument("--docs", type=Path, metavar="FILE", help=f"page whose section {HEADING[3:]} gets the table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change an entry of the configuration")
    return parser.parse_intermixed_args(arguments)


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of earlier calls, without any if the file does not exist.

    Raises:
        UsageError: the file has other content, or its folder does not exist.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise UsageError(f"--json {path}: no such folder")
        return {}
    try:
        results = json.loads(path.read_text("utf-8"))
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UsageError(f"--json {path}: is not a file of this command; name another one")
    return results


def machine(device: str) -> str:
    """Return a line about the machine.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    from ssd.system.device import choose_device, device_name
    from ssd.system.machine import num_cores

    return f"{device_name(choose_device(device))}, {num_cores()} CPU cores, torch {torch.__version__}"


def step_part(options: argparse.Namespace, folder: Path) -> Results:
    return [row for size in options.batch_size for row in benchmark(options, folder, "step", size, "--compile")]


def loader_part(options: argparse.Namespace, folder: Path) -> Results:
    return benchmark(options, folder, "loader", options.batch_size[0])


def benchmark(options: argparse.Namespace, folder: Path, case: str, batch_size: int, *more: str) -> Results:
    """Run one case of scripts/benchmark.py, and return a row for each variant."""
    output = folder / f"{case}{batch_size}.json"
    words = ["--config", options.config, "--device", options.device, "--rounds", str(options.rounds), "--only", case]
    done = run(
        "scripts/benchmark.py", *words, "--batch-size", str(batch_size), "--json", str(output), *more, *options.overrides
    )
    if done.returncode:
        return [{"what": f"{case}, batch {batch_size}", "result": last_line(done)}]
    return [
        {"what": f"{row['case']}: {row['variant']}", "result": f"{row['rate']:,.1f} {row['unit']}", **row}
        for row in json.loads(output.read_text())
    ]


def precision_part(options: argparse.Namespace, folder: Path) -> Results:
    results = []
    for name in ("float32", "bfloat16", "float16"):
        where = folder / name
        entries = (f"train.precision={name}", f"train.batch_size={options.batch_size[0]}", "train.epochs=null")
        done = train(options, where, *entries, f"train.iterations={options.iterations}", "eval.every=1000000000")
        results.append({"what": f"{options.iterations} iterations in {name}", **trained(done, where)})
    return results


def tests_part(options: argparse.Namespace, folder: Path) -> Results:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "tests/ssd/test_gpu.py")
    return [{"what": "tests of the GPU", "result": last_line(done)}]


def shared_part(options: argparse.Namespace, folder: Path) -> Results:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py")
    where = folder / "run"
    entries = ("train.epochs=null", "train.iterations=1", "train.batch_size=2", "eval.every=1000000000")
    done = train(options, where, *entries, launch=launch)
    if done.returncode == 0:
        return [{"what": "two processes", **trained(done, where)}]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return [{"what": "two processes on one GPU", "result": errors[0] if errors else last_line(done)}]


def run_part(options: argparse.Namespace, folder: Path) -> Results:
    data = load_config(options.config, options.overrides).data
    config, where = folder / "run.yaml", folder / "run"
    source = Path(data.root) / data.train[0].path
    words = ("--minutes", str(options.minutes), "--no-download", "--output", str(config))
    planned = run("scripts/new_config.py", str(source), *words)
    what = f"train.py, planned for {options.minutes} minutes"
    if planned.returncode:
        return [{"what": what, "result": last_line(planned)}]
    start = time.monotonic()
    done = run("train.py", "--config", str(config), f"device={options.device}", f"output_dir={where}")
    seconds = time.monotonic() - start
    return [{"what": what, **trained(done, where), "seconds": seconds, "config": config.read_text()}]


PARTS: dict[str, Callable[[argparse.Namespace, Path], Results]] = {
    "step": step_part,
    "loader": loader_part,
    "precision": precision_part,
    "tests": tests_part,
    "shared": shared_part,
    "run": run_part,
}


def train(
    options: argparse.Namespace, folder: Path, *entries: str, launch: tuple[str, ...] = ("train.py",)
) -> "subprocess.CompletedProcess[str]":
    places = (f"device={options.device}", f"output_dir={folder}", f"log_every={LOG_EVERY}")
    return run(*launch, "--config", options.config, *options.overrides, *places, *entries)


def trained(done: "subprocess.CompletedProcess[str]", folder: Path) -> dict[str, Any]:
    """Return the result of a training: images/s, loss and mAP, or why it failed."""
    if done.returncode:
        return {"result": last_line(done)}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    rate = statistics.median(record["images_per_s"] for record in steps[1:] or steps)  # the first one warms up
    last = steps[-1]
    words = f"{rate:,.1f} images/s, loss {last['loss']:.3f}, {last_line(done)}"
    return {"result": words, "images_per_s": rate, "loss": last["loss"]}


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in the project's folder."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line of a command's output, or of its errors if it failed."""
    lines = [line for line in ((done.stderr if done.returncode else "") or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with exit code {done.returncode}"


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    rows = [f"| {row['what']} | {row['result']} |" for part in PARTS for row in results.get(part, [])]
    head = f"{results['machine']}; `python scripts/benchmark_gpu.py`:\n\n| measurement | result |\n|---|---|\n"
    return head + "\n".join(rows) + "\n"


def with_table(page: str, text: str) -> str:
    """Return a page with its section about GPUs replaced, or with one appended."""
    before, _, after = page.partition(f"{HEADING}\n")
    following = after.find("\n## ")
    return f"{before.rstrip()}\n\n{HEADING}\n\n{text}" + (after[following:] if following >= 0 else "")


if __name__ == "__main__":
    sys.exit(main())
