# SPDX-License-Identifier: Apache-2.0
"""Measure what a kind of machine costs: ``python -m meshlab.bench.machine``.

Boots one node at a time, in turns so that a busy spell of the host hits every variant alike, and
prints a Markdown table of medians: CPU seconds of QEMU from power-on to the first answer of the
shell, until the node has settled, and per minute of idleness, and its memory. The table in
docs/simulator.md, "Machine", was made with it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from host.cache import cache_root
from meshlab.machine.accel import Accel, choose
from meshlab.machine.machine import Machine
from meshlab.machine.spec import BOARDS, Board, MachineSpec


@dataclass(frozen=True)
class Variant:
    """One kind of machine to measure."""

    label: str
    board: Board
    cpu: str = "max"
    buffer: int = MachineSpec.code_buffer_mib
    cmdline: str = ""
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """What one boot cost."""

    shell_wall: float
    shell_cpu: float
    settled_cpu: float
    idle_cpu: float
    rss_mib: float


def variants(khz: int | None) -> list[Variant]:
    """Return the machines that are compared."""
    q35 = BOARDS["q35"]
    micro = BOARDS["microvm"]
    clock = f"tsc_early_khz={khz} tsc=reliable"
    lapic = dataclasses.replace(q35, tcg_machine="hpet=off", tcg_cmdline="")
    acpi = dataclasses.replace(micro, machine="microvm,acpi=on")
    return [
        Variant("q35 (chosen)", q35, cmdline=clock),
        Variant("q35, all its devices", dataclasses.replace(q35, machine="q35"), cmdline=clock),
        Variant("pc", BOARDS["pc"], cmdline=clock),
        Variant("microvm, acpi=on", acpi, cmdline=clock),
        Variant("microvm, acpi=off", micro, cmdline=clock),
        Variant("q35, timer of the local APIC", lapic, cmdline=clock),
        Variant("q35, clock acpi_pm, timer of the local APIC", lapic, cmdline="tsc=unstable"),
        Variant("q35, -cpu qemu64", q35, cpu="qemu64", cmdline=clock),
        Variant("q35, -cpu Nehalem", q35, cpu="Nehalem", cmdline=clock),
        Variant("q35, -cpu max,-avx2,-avx", q35, cpu="max,-avx2,-avx", cmdline=clock),
        Variant("q35, tb-size=48", q35, buffer=48, cmdline=clock),
        Variant("q35, tb-size=96", q35, buffer=96, cmdline=clock),
        Variant("q35, tb-size=128", q35, buffer=128, cmdline=clock),
    ]


def _copy(source: Path, to: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, to], check=True)


async def measure(variant: Variant, arguments: argparse.Namespace, scratch: Path) -> Sample:
    """Boot ``variant`` once."""
    directory = scratch / f"run{time.monotonic_ns()}"
    directory.mkdir()
    for name in ("config.img", "data.img"):
        await asyncio.to_thread(_copy, scratch / name, directory / name)
    spec = MachineSpec(
        name="bench",
        directory=directory,
        kernel=arguments.kernel,
        rootfs=arguments.rootfs,
        cmdline=f"{arguments.cmdline} {variant.cmdline}".strip(),
        accel=Accel("tcg", "bench", variant.cpu),
        chip=False,
        relay=not arguments.no_relay,
        board=variant.board,
        code_buffer_mib=variant.buffer,
        extra=variant.extra,
    )
    machine = Machine(spec)
    started = time.monotonic()
    await machine.start()
    try:
        await machine.shell.ready(120)
        shell_wall = time.monotonic() - started
        shell_cpu = machine.cpu_seconds()
        await asyncio.sleep(arguments.settle)
        settled = machine.cpu_seconds()
        await asyncio.sleep(arguments.idle)
        idle = machine.cpu_seconds() - settled
        return Sample(shell_wall, shell_cpu, settled, idle, machine.own_kib() / 1024)
    finally:
        machine.kill()
        await machine.wait()
        shutil.rmtree(directory)


async def _warm(arguments: argparse.Namespace, scratch: Path) -> None:
    """Boot once so that every measured boot finds its file system made."""
    machine = Machine(
        MachineSpec(
            name="warm",
            directory=scratch,
            kernel=arguments.kernel,
            rootfs=arguments.rootfs,
            cmdline=arguments.cmdline,
            accel=Accel("tcg", "bench", "max"),
            chip=False,
        )
    )
    await machine.start()
    try:
        await machine.shell.ready(120)
    finally:
        await machine.stop(30)


async def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    accel = choose(cache_root(), environment={"THICKET_ACCEL": "tcg"})
    chosen = [
        v
        for v in variants(accel.tsc_khz)
        if not arguments.only or any(o in v.label for o in arguments.only)
    ]
    samples: dict[str, list[Sample]] = {v.label: [] for v in chosen}
    with tempfile.TemporaryDirectory(prefix="meshlab-bench-") as name:
        scratch = Path(name)
        shutil.copy(arguments.config, scratch / "config.img")
        with (scratch / "data.img").open("wb") as file:
            file.truncate(64 << 20)
        await _warm(arguments, scratch)
        for turn in range(arguments.repeat):
            for variant in random.sample(chosen, len(chosen)):
                try:
                    samples[variant.label].append(await measure(variant, arguments, scratch))
                except Exception as error:
                    print(f"{variant.label}: {error}", file=sys.stderr)
            print(f"turn {turn + 1} of {arguments.repeat}", file=sys.stderr)
    print(
        "| machine | shell, s | CPU s to shell | CPU s settled | CPU s per idle min | memory, MiB |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for label, got in samples.items():
        if not got:
            print(f"| {label} | does not boot | | | | |")
            continue

        def median(field: str, got: list[Sample] = got) -> float:
            return float(statistics.median(getattr(sample, field) for sample in got))

        print(
            f"| {label} | {median('shell_wall'):.1f} | {median('shell_cpu'):.2f} "
            f"| {median('settled_cpu'):.2f} | {median('idle_cpu') * 60 / arguments.idle:.2f} "
            f"| {median('rss_mib'):.0f} |"
        )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m meshlab.bench.machine", description=__doc__)
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--rootfs", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="a configuration disk")
    parser.add_argument("--cmdline", required=True, help="the image's kernel parameters")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--settle", type=float, default=8.0, help="seconds after the shell answers")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idleness to measure")
    parser.add_argument("--no-relay", action="store_true", help="without hwsim and its relay")
    parser.add_argument(
        "only", nargs="*", help="measure variants whose label contains one of these"
    )
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
