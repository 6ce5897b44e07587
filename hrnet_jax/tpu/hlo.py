"""Finds collective communication, kernels, their traffic and a TPU's estimated cycles in a compiled program's text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives of one kind over the same number of devices, in one run of a program.

    Attributes:
      kind: "all-reduce", "all-gather", ...
      devices: number of participating devices in each.
      count: number of executions; an asynchronous pair counts once, those in a loop once per iteration.
      bytes: total size of their results on one device.
    """

    kind: str
    devices: int
    count: int
    bytes: int


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
# Instructions that run no kernel.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_FREE |= {"while", "conditional"}
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<op>[a-z][\w-]*)\(")
_COLLECTIVE = re.compile(rf"({_KINDS})(-start|-done)?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
# Of these, the calls of loops and branches, whose instructions are kernels of their own.
_CONTROL = re.compile(r"(?:body|condition|(?:branch|true|false)_computations?)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|bf\d+|[a-z]\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2] {'b'}, where a part of an axis is written 'b':(1)2.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+)\}|mesh\[(?P<mesh>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\})"
)


def collectives(hlo: str, devices: int) -> list[Collectives]:
    """Counts the collectives of a compiled program.

    Args:
      hlo: the text of the optimised module, `compiled.as_text()`.
      devices: number of devices that the program runs on.

    Returns:
      One entry per kind and number of devices, largest number of bytes first.
    """
    times = _executions(hlo, _CALLED)
    counts: Counter[tuple[str, int]] = Counter()
    total: Counter[tuple[str, int]] = Counter()
    started: dict[str, int] = {}
    for computation, instruction, line in _instructions(hlo):
        if not (collective := _COLLECTIVE.fullmatch(instruction["op"])):
            continue
        kind, phase = collective.groups()
        size = _group_size(line, devices)
        if phase == "-start":  # its shape includes operands and buffers
            started[instruction["name"]] = size
            continue
        if phase == "-done":
            size = next((started[name] for name in re.findall(r"[\w.-]+", line) if name in started), devices)
        counts[kind, size] += times[computation]
        total[kind, size] += times[computation] * _shape_bytes(instruction["shape"])
    entries = [Collectives(*key, count, total[key]) for key, count in counts.items() if count]
    return sorted(entries, key=lambda c: (-c.bytes, c.kind, c.devices))


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Kernels of one kind in one run of a program.

    Attributes:
      kind: "convolution", "fusion", "copy", ...
      count: number of launches.
      small: of these, the ones that move less than 1 MB.
      bytes: total size of their operands and results in the device's memory.
    """

    kind: str
    count: int
    small: int
    bytes: int


def kernels(hlo: str) -> list[Kernels]:
    """Counts the kernels of a compiled program, those in loops once per iteration, and what they read and write.

    Args:
      hlo: the text of the optimised module, `compiled.as_text()`.

    Returns:
      One entry per kind, largest number of bytes first.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for line, op, moved, count in _launches(hlo, _shape_bytes):
        found["convolution" if "$conv" in line or op == "convolution" else op] += [moved] * count
    entries = [Kernels(kind, len(all_), sum(m < 1e6 for m in all_), sum(all_)) for kind, all_ in found.items()]
    return sorted(entries, key=lambda entry: -entry.bytes)


@dataclasses.dataclass(frozen=True)
class TpuTraffic:
    """What a TPU's compiler says of one run of a program.

    Attributes:
      hbm_bytes: operands and results in HBM, with their padding to tiles; what lies on the chip (VMEM) is not counted.
      cycles: the compiler's estimates, summed over all kernels.
    """

    hbm_bytes: int
    cycles: int


def tpu_traffic(hlo: str) -> TpuTraffic:
    """Adds up a TPU program's traffic and cycles, those in loops once per iteration.

    Args:
      hlo: the text of the optimised module, `compiled.as_text()`.
    """
    moved, cycles = 0, 0
    for line, _, size, count in _launches(hlo, functools.partial(_shape_bytes, in_hbm=True)):
        moved += count * size
        if estimate := _CYCLES.search(line):
            cycles += count * int(estimate[1])
    return TpuTraffic(moved, cycles)


def _launches(hlo: str, bytes_of: Callable[[str], int]) -> Iterator[tuple[str, str, int, int]]:
    """The kernels: line, operation, bytes of operands and results by a function of their shapes, number of launches.

    Of a program's argument a kernel may read a part, such as a parameter in the vector of all; at most the size of the
    kernel's result is counted.
    """
    times = _executions(hlo, _CONTROL)
    sizes: dict[str, int] = {}
    arguments: set[str] = set()
    for computation, instruction, line in _instructions(hlo):
        if not times[computation]:  # the inside of a kernel
            continue
        name, op, shape = instruction["name"], instruction["op"], instruction["shape"]
        sizes[name] = bytes_of(shape)
        if op == "parameter":
            arguments.add(name)
        if op in _FREE or op.endswith("-done"):
            continue
        operands = set(re.findall(r"%([\w.-]+)", line[instruction.end() :].partition(")")[0]))
        if op.endswith("-start"):  # its result names its operands too
            operands = set()
        most = _shape_bytes(shape)
        read = sum(min(sizes.get(o, 0), most) if o in arguments else sizes.get(o, 0) for o in operands)
        yield line, op, sizes[name] + read, times[computation]


def _instructions(hlo: str) -> Iterator[tuple[str, re.Match[str], str]]:
    """The computation, the parts and the line of each instruction."""
    computation = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header["name"]
        if instruction := _INSTRUCTION.match(line):
            yield computation, instruction, line


def _executions(hlo: str, called: re.Pattern[str]) -> Counter[str]:
    """How often each computation is run, by the calls that a pattern finds; a loop's body once per iteration."""
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for computation, instruction, line in _instructions(hlo):
        op = instruction["op"]
        if op.endswith(("-done", "-update")) or _COLLECTIVE.fullmatch(op):
            continue  # only the start of an asynchronous call is counted
        trips = int(trips[1]) if op == "while" and (trips := _TRIPS.search(line)) else 1
        for names in called.findall(line):
            for name in re.findall(r"[\w.-]+", names):
                calls[computation][name] += trips
    times: Counter[str] = Counter()

    def run(computation: str, count: int) -> None:
        times[computation] += count
        for name, trips in calls[computation].items():
            run(name, count * trips)

    run(next(header["name"] for header in map(_COMPUTATION.match, hlo.splitlines()) if header and header["entry"]), 1)
    return times


def _group_size(line: str, devices: int) -> int:
    groups = _GROUPS.search(line)
    if groups is None:
        return devices
    if groups["mesh"]:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups["mesh"]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", groups["axes"])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return int(groups["size"]) if groups["size"] else groups["first"].count(",") + 1


def _shape_bytes(shape: str, in_hbm: bool = False) -> int:
    """Bytes of all arrays in a shape; `in_hbm`: of those in a TPU's HBM, padded to their tiles."""

    def array_bytes(kind: str, dims: str, order: str, layout: str) -> int:
        bits = 8 if kind == "pred" else int("".join(filter(str.isdigit, kind.split("e")[0])))  # bf16, f8e4m3, s32, ...
        sides = [int(dim) for dim in dims.split(",") if dim]
        if in_hbm:
            if re.search(r"S\([1-9]", layout):
                return 0
            tile = _TILE.search(layout)
            # A tile covers the dimensions that lie closest together, the last the closest.
            minor = [int(dim) for dim in order.split(",") if dim]
            for dim, side in zip(minor, map(int, reversed(tile[1].split(",") if tile else ())), strict=False):
                sides[dim] = -(-sides[dim] // side) * side
        return math.prod(sides) * bits // 8

    return sum(array_bytes(*array) for array in _ARRAY.findall(shape))
