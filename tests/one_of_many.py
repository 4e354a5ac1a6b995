"""One of several processes, for test_processes.py: trains a small pipeline, and may misbehave.

Usage: one_of_many.py ORDER STEPS OUT [FAULT PROCESS|all STEP]
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxpipe as jp
from jaxpipe.processes import facts
from jaxpipe.replicas import Replicas
from jaxpipe.sections import Sections
from jaxpipe.simulate_devices import simulate_devices
from jaxpipe.watch import Watchdog

NUM_DEVICES, PIPE, DATA, BATCH = 8, 4, 2, 16
LIMIT = 2.0  # seconds of the section in which one misbehaves


def mesh_of(order: str, pipe: int, data: int):
    """Devices as JAX lists them, or so that `data` changes slowest: both axes span processes."""
    devices = np.array(jax.devices()[: pipe * data])
    if order == "data outside":
        devices = devices.reshape(data, pipe).T.reshape(-1)
    return jp.make_mesh(pipe=pipe, data=data, devices=list(devices))


def build(mesh):
    dense = lambda width: jp.LayerSpec(nn.Dense, width)
    layers = [jp.LayerSpec(nn.Embed, 32, 16), dense(16), dense(24), dense(32)]
    model = jp.PipelineModule(
        layers, jp.losses.cross_entropy, partition_method="uniform", id_ranges=dict(inputs=(0, 32))
    )
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0, momentum=0.9))
    return jp.initialize(model, mesh=mesh, optimizer=clipped, num_microbatches=2)


def whole_batch(step):
    ids = np.random.default_rng(step).integers(0, 32, (BATCH, 9)).astype(np.int32)
    return dict(inputs=ids[:, :-1], targets=ids[:, 1:])


def batch_of(engine, step):
    rows = engine.local_rows(BATCH)
    return {name: field[rows] for name, field in whole_batch(step).items()}


def results(engine, num_steps, *, everything):
    """What must not depend on the number of processes: of training, or of `everything`."""
    state = engine.init(jax.random.key(0), batch_of(engine, 0))
    losses = []
    for step in range(num_steps):
        state, metrics = engine.train_batch(state, batch_of(engine, step))
        losses.append([float(metrics[name]) for name in ("loss", "weight", "grad_norm")])
    trees = {"params": engine.logical(state.params)}
    arrays: dict = {"losses": losses}
    if everything:
        held_out = batch_of(engine, num_steps)
        loss, grads = engine.value_and_grad(state.params, held_out, jax.random.key(5))
        evaluated = float(engine.eval_batch(state, held_out)["loss"])
        arrays |= {"evaluated": [evaluated, float(loss)]}
        arrays |= {"predicted": engine.predict(state, held_out)}
        trees |= {"again": engine.logical(engine.place(trees["params"]))}
        trees |= {"grads": engine.logical(grads), "moments": engine.logical(state.opt_state)}
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[f"{name}{jax.tree_util.keystr(path)}"] = leaf
    return {name: np.asarray(array) for name, array in arrays.items()}


def differences(mesh) -> list[str]:
    """What all find where a device of process 1 has other bits than all the others."""
    parts = []
    for device in jax.local_devices():
        odd = device == jax.local_devices()[1] and jax.process_index() == 1
        parts.append(jax.device_put(np.full(3, 1 + odd, np.float32), device))
    everywhere = NamedSharding(mesh, PartitionSpec())
    array = jax.make_array_from_single_device_arrays((3,), everywhere, parts)
    return Replicas(mesh).differences({"x": array})


def misbehave(fault: str):
    print(f"now {time.time()}", flush=True)
    if fault == "raise":
        raise ZeroDivisionError("thrown on purpose")
    if fault == "exit":
        sys.exit(0)
    while fault == "loop":
        pass
    if fault == "hold":  # Python's lock
        ctypes.PyDLL(None).sleep(1000)


def go_on(num_steps, fault, sections):
    """Steps that are nothing but a meeting of all devices."""
    kind, index, at = fault
    sharding = NamedSharding(mesh_of("as listed", NUM_DEVICES, 1), PartitionSpec("pipe"))
    meet = jax.jit(lambda x: x + x.sum(), out_shardings=sharding)
    own = np.zeros(jax.local_device_count())
    for step in range(num_steps):
        culprit = step == int(at) and index in ("all", str(jax.process_index()))
        with sections.enter("work" if culprit else "step", step):
            if culprit:
                misbehave(kind)
            meet(jax.make_array_from_process_local_data(sharding, own)).block_until_ready()
        print("step", step, flush=True)
        time.sleep(0.02)


def main(order, num_steps, out, *fault):
    launch = (
        jp.Launch(heartbeat_timeout=5, start_timeout=2 if "alone" in fault else 60)
        if fault
        else jp.Launch()
    )
    if order == "another jax":
        own = facts._version
        facts._version = lambda name: "0.0.1" if name == "jax" else own(name)
    if "alone" in fault:
        print(f"now {time.time()}", flush=True)
    with jp.start_processes(launch, facts={"order": order}) as processes:
        simulate_devices(processes.share(NUM_DEVICES))
        if fault:
            sections = Sections()
            limits = {"work": LIMIT}
            with Watchdog(sections, limits, Path(out or "."), processes=processes):
                return go_on(int(num_steps), fault, sections)
        engine = build(mesh_of(order, PIPE, DATA))
        found = results(engine, int(num_steps), everything=order == "data outside")
        rows = engine.local_rows(BATCH)
        print(json.dumps([processes.index, rows.start, rows.stop, *differences(engine.mesh)]))
        if processes.is_first:
            np.savez(Path(out), allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
