"""Compiling for TPU slices: collectives read from real programs, mistakes, and, with libtpu, a slice of four chips."""

import importlib.metadata
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.errors import InputError, extra
from hrnet_jax import aot
from hrnet_jax.config import load_config
from hrnet_jax.mesh import create_mesh, replicated
from hrnet_jax.tpu.hlo import Collectives, Kernels, TpuTraffic, collectives, kernels, tpu_traffic
from tests.helpers import REPOSITORY, mistake, run

try:
    importlib.metadata.version("libtpu")
    HAS_LIBTPU = True
except importlib.metadata.PackageNotFoundError:
    HAS_LIBTPU = False
try:
    importlib.metadata.version("jax-cuda13-plugin")
    HAS_CUDA = True
except importlib.metadata.PackageNotFoundError:
    HAS_CUDA = False
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="needs the extra tpu")

TINY = "configs/coco_aic_merge.py:bf16,runlocal"


SPLIT = PartitionSpec("data")


def compiled_text(function, *shapes):
    """The optimised program of a function that runs on both devices, each with its part of the arguments."""
    mesh = create_mesh()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, SPLIT)) for s, d in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_each_kind_of_collective_is_counted_with_the_bytes_of_its_result():
    def function(x):  # [3, 8] float32 on each of two devices
        return (
            jax.lax.psum(x, "data"),
            jax.lax.all_gather(x, "data"),
            jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]),
            jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
        )

    text = compiled_text(function, ((6, 8), jnp.float32))
    size = 3 * 8 * 4
    assert {(c.kind, c.count, c.bytes) for c in collectives(text, 2)} == {
        ("all-reduce", 1, size),
        ("all-gather", 1, 2 * size),
        ("collective-permute", 1, size),
        ("reduce-scatter", 1, size // 2),
    }


def test_elements_of_every_width_and_tuples_are_measured():
    def function(x, y):
        return jax.lax.all_to_all((x, y), "data", 1, 0)

    text = compiled_text(function, ((6, 2), jnp.int16), ((10, 2), jnp.bool))
    assert sum(c.bytes for c in collectives(text, 2)) == 3 * 2 * 2 + 5 * 2


def test_a_loop_counts_as_often_as_it_runs():
    def function(x):
        def body(carry, _):
            return jax.lax.psum(carry, "data") * 0.5, None

        return jax.lax.scan(body, x, length=7)[0]

    text = compiled_text(function, ((4,), jnp.float32))
    assert collectives(text, 2) == [Collectives("all-reduce", devices=2, count=7, bytes=7 * 2 * 4)]


def test_a_program_without_communication_has_none():
    assert collectives(compiled_text(lambda x: x * 2, ((4,), jnp.float32)), 2) == []


FOUR_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec
from hrnet_jax.tpu.hlo import collectives
jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
split = PartitionSpec("rows", "columns")

def sums(x):
    return jax.lax.psum(x, "columns"), jax.lax.psum(x, "rows"), jax.lax.psum(x, ("rows", "columns"))

sums = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
for c in collectives(sums.lower(jax.ShapeDtypeStruct((6, 10), jnp.float32)).compile().as_text(), 4):
    print(c.kind, c.devices, c.count, c.bytes)
"""


def test_sums_over_two_of_four_devices_are_told_apart_from_sums_over_all():
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    assert sorted(done.stdout.splitlines()) == ["all-reduce 2 2 120", "all-reduce 4 1 60"]


def test_the_steps_are_the_trainers_with_its_shardings_and_donation():
    config = load_config(TINY)
    config.model.variant = "micro"
    mesh = create_mesh()
    lowered = aot.lower("train", config, mesh)
    (state, batch), _ = lowered.args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(state))
    assert not any(leaf.donated for leaf in jax.tree.leaves(batch))
    shardings, _ = lowered.compile().input_shardings
    assert {s.spec for s in jax.tree.leaves(shardings[1])} == {PartitionSpec("data")}
    assert all(s.is_equivalent_to(replicated(mesh), 1) for s in jax.tree.leaves(shardings[0]))


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "not CHIP:SHAPE"),
        ("v3:2x2", "v4, v5e, v5p, v6e"),
        ("v5e:2x", "not CHIP:SHAPE"),
        ("v5e:2x2x1", "2 dimensions"),
        ("v4:2x2", "3 dimensions"),
    ],
)
def test_impossible_slices_are_named(topology, message):
    with pytest.raises(InputError, match=message) as caught:
        aot.measure(load_config(TINY), topology)
    assert "\n" not in str(caught.value)


def test_kernels_are_counted_with_what_they_move():
    """Two reads of the state, of which one takes a part, a convolution and a copy; bitcasts are no kernels."""
    text = """
ENTRY %main (state: f32[1000000], x: bf16[8,16,16,32]) -> (f32[1000000]) {
  %state = f32[1000000]{0} parameter(0)
  %x = bf16[8,16,16,32]{3,2,1,0} parameter(1)
  %w = bf16[32,3,3,32]{3,2,1,0} fusion(%state), kind=kInput, calls=%part
  %bitcast = bf16[8,256,32]{2,1,0} bitcast(%x)
  %conv = (bf16[8,16,16,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), custom_call_target="__cudnn$convForward"
  %y = bf16[8,16,16,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %sum = f32[32]{0} fusion(%y), kind=kInput, calls=%add
  %copy = f32[1000000]{0} copy(%state)
  ROOT %new = f32[1000000]{0} fusion(%copy, %sum), kind=kLoop, calls=%update
}
"""
    weights, map_, state = 2 * 32 * 9 * 32, 2 * 8 * 16 * 16 * 32, 4_000_000
    assert kernels(text) == [
        Kernels("fusion", 3, 2, 2 * weights + (map_ + 128) + (2 * state + 128)),
        Kernels("copy", 1, 0, 2 * state),
        Kernels("convolution", 1, 1, 2 * map_ + weights),
    ]


def test_kernels_of_a_loop_count_once_per_iteration():
    """A loop's body is computed three times; what a kernel is made of is no kernel."""
    text = """
%inside (p: f32[250000]) -> f32[250000] {
  %p = f32[250000]{0} parameter(0)
  ROOT %twice = f32[250000]{0} add(%p, %p)
}

%body (state: (s32[], f32[250000])) -> (s32[], f32[250000]) {
  %state = (s32[], f32[250000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[250000]{0} get-tuple-element(%state), index=1
  %y = f32[250000]{0} fusion(%x), kind=kLoop, calls=%inside
  ROOT %next = (s32[], f32[250000]{0}) tuple(%i, %y)
}

%more (state.1: (s32[], f32[250000])) -> pred[] {
  %state.1 = (s32[], f32[250000]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x.1: f32[250000]) -> f32[250000] {
  %x.1 = f32[250000]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[250000]{0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[250000]{0}) while(%first), condition=%more, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %end = f32[250000]{0} get-tuple-element(%loop), index=1
}
"""
    assert kernels(text) == [Kernels("fusion", 3, 0, 3 * 2_000_000)]


@pytest.mark.skipif(HAS_CUDA, reason="the GPU compiler is installed")
def test_the_command_without_the_gpu_compiler_says_what_to_install():
    line = mistake("hrnet_jax.aot", "--config", TINY, "--topology", "h100")
    assert "pip install 'jax[cuda13]'" in line


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax[cuda13]")
def test_a_gpu(tmp_path):
    output = tmp_path / "report.json"
    done = run("hrnet_jax.aot", "--config", TINY, "--topology", "h100", "--output", output)
    train, evaluation = json.loads(output.read_text())["steps"].values()
    assert train["output_bytes"] - train["alias_bytes"] < 20_000
    counts = [{entry["kind"]: entry["count"] for entry in step["kernels"]} for step in (train, evaluation)]
    # Forward and two gradients; the first convolution has none of its input.
    assert 2.5 < counts[0]["convolution"] / counts[1]["convolution"] < 3
    # Weights come in the type and layout of the convolutions: no kernel converts one.
    others = sum(count for kind, count in counts[1].items() if kind != "convolution")
    assert others < 0.5 * counts[1]["convolution"]
    assert "kernels; of these, moving less than 1 MB" in done.stdout


def test_a_tpus_traffic_is_that_of_its_hbm():
    """Padded to tiles, without what lies in VMEM; an asynchronous copy's result names its operand."""
    text = """
ENTRY %main (x: bf16[8,12,16,32], state: f32[1000000]) -> f32[12,17] {
  %x = bf16[8,12,16,32]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %state = f32[1000000]{0:T(1024)} parameter(1)
  %start = (bf16[8,12,16,32]{3,0,2,1:T(8,128)(2,1)S(1)}, bf16[8,12,16,32]{3,0,2,1:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%x)
  %near = bf16[8,12,16,32]{3,0,2,1:T(8,128)(2,1)S(1)} copy-done(%start)
  %y = f32[12,16]{0,1:T(8,128)S(1)} fusion(%near), kind=kLoop, calls=%sum, \
backend_config={"window_config":{"estimated_cycles":"2000"}}
  ROOT %z = f32[12,17]{0,1:T(8,128)} fusion(%y, %state), kind=kLoop, calls=%more, \
backend_config={"window_config":{"estimated_cycles":"1500"}}
}
"""
    image, result = 2 * 8 * 12 * 16 * 128, 4 * 128 * 24
    assert tpu_traffic(text) == TpuTraffic(image + result + 4 * 12 * 17, 3500)


def test_unknown_steps_are_named():
    with pytest.raises(InputError, match="'test'; there are train, eval"):
        aot.measure(load_config(TINY), "v5e:2x2", steps=["train", "test"])


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_the_command_without_libtpu_says_what_to_install():
    line = mistake("hrnet_jax.aot", "--config", TINY, "--topology", "v5e:2x2")
    assert line.endswith(extra("tpu"))


@needs_libtpu
def test_four_chips(tmp_path):
    output = tmp_path / "report.json"
    done = run(
        *("hrnet_jax.aot", "--config", TINY, "--topology", "v5e:2x2", "--output", output),
        *("--config.model.group_size=4",),
    )
    report = json.loads(output.read_text())
    assert (report["chips"], report["hosts"]) == (4, 1)
    train, evaluation = report["steps"]["train"], report["steps"]["eval"]
    # The state goes back where it came from; what is left are the measured scalars.
    assert train["output_bytes"] - train["alias_bytes"] < 20_000
    assert 0 < evaluation["flops"] < train["flops"]
    # Whole BatchNorm groups on every chip: gradients, statistics and what is measured, and nothing in between.
    assert {c["kind"] for c in train["collectives"]} == {"all-reduce"}
    assert sum(c["count"] for c in train["collectives"]) <= 7
    assert evaluation["collectives"] == []
    assert "| **bound by** | **HBM** | **HBM** |" in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v5e:3x3",), "v5e:3x3: Topology layout"),
        (("v5e:2x2", "--config.batch_size=18"), "config.batch_size=18 is not a multiple of the 4 devices"),
        (("v5e:2x2", "--config.devices=2"), "config.devices=2: all 4 devices of v5e:2x2 must be used"),
        (("v5e:2x2", "--steps=train", "--config.batch_size=800000"), "exceeds available HBM (15.75G)"),
    ],
)
def test_what_a_slice_cannot_do_gets_one_line(arguments, message):
    done = run("hrnet_jax.aot", "--config", TINY, "--topology", *arguments, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message in line
