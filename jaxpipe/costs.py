"""What each layer costs: parameters, FLOPs, and bytes to the next, from shapes alone."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxpipe import jaxpr as jaxprs
from jaxpipe.mesh import TENSOR, axis_size, traced_on
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.partition import LayerCost
from jaxpipe.spec import num_bytes, num_elements, signature

PyTree = Any


def layer_costs(model: PipelineModule, outline: Outline) -> tuple[LayerCost, ...]:
    """One cost per layer, for `partition`. Tied parameters count once, with their owner.

    FLOPs are of the forward pass on one microbatch, from XLA's analysis of the layer before
    optimisation; each kind of layer is analysed once.
    """
    known: dict[Hashable, int] = {}
    costs = []
    for layer in model.layers:
        x, y = outline.inputs[layer.index], outline.outputs[layer.index]
        params = outline.params[layer.owner]
        key = layer.kind, signature((x, params))
        if key not in known:
            run = lambda p, x, b, layer=layer: model.apply_layer(layer, p, x, b, None, False)
            known[key] = int(flops(run, params, x, outline.batch))
        count = 0 if layer.is_tied else num_elements(params)
        costs.append(LayerCost(layer.name, layer.type_name, count, known[key], num_bytes(y)))
    return tuple(costs)


def flops(fn: Callable[..., Any], *args: PyTree, mesh: Mesh | None = None) -> float:
    """What a function of abstract `args` computes, by XLA's analysis before optimisation.

    XLA counts the body of a loop once; those of `lax.scan` count here as often as they run.

    Args:
      fn: the function.
      *args: what it is given; on a mesh, on one device.
      mesh: whose axes it may name.
    """
    trace = lambda: jaxprs.trace(fn, *args)[0]
    closed = trace() if mesh is None else traced_on(mesh, trace)
    return _once(fn, args, mesh) + _repeated(closed, mesh)


def _once(fn: Callable[..., Any], args: Sequence[PyTree], mesh: Mesh | None) -> float:
    if mesh is not None and axis_size(mesh, TENSOR) > 1:
        alike = PartitionSpec()
        # Abstract: the mesh may be of devices that are only described.
        on = mesh.abstract_mesh
        fn = jax.shard_map(fn, mesh=on, in_specs=alike, out_specs=alike, check_vma=False)
    # What was traced on a mesh says so, and XLA would take it for an array that lies there.
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("cpu",))
    analysis: Any = lowered.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return max(0.0, float(analysis.get("flops", 0)))  # less than 0 where it does not know


def _repeated(closed: jaxprs.ClosedJaxpr, mesh: Mesh | None) -> float:
    """What the iterations of scans compute beyond one each."""
    total = 0.0
    for scan in jaxprs.loops(closed):
        run = lambda *args, body=scan.body: jaxprs.call(body, args)
        once = _once(run, jaxprs.input_specs(scan.body), mesh)
        more = _repeated(scan.body, mesh)
        total += (scan.length - 1) * once + scan.length * more
    return total
