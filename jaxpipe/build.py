"""From a configuration to an engine: the network, the mesh, the optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpipe import losses, nn
from jaxpipe.config import Config, PipelineConfig
from jaxpipe.engine import Engine, initialize
from jaxpipe.errors import MeshError
from jaxpipe.layers import LayerSpec
from jaxpipe.mesh import make_mesh
from jaxpipe.model import PipelineModule
from jaxpipe.models import GPTConfig, LlamaConfig, ViTConfig, gpt, llama, vit
from jaxpipe.optimizers import build_optimizer
from jaxpipe.zero import Zero


def build_engine(config: Config, mesh: Mesh | None = None) -> Engine:
    """The engine that a configuration describes.

    Args:
      config: the run.
      mesh: of the sizes that it says; by default of the devices that there are.

    Raises:
      JaxpipeError: there are too few devices, or the model cannot be cut as asked.
    """
    pipeline = config.pipeline
    if mesh is None:
        _check_devices(pipeline)
        mesh = make_mesh(pipe=pipeline.ranks, data=pipeline.data, tensor=pipeline.tensor)
    is_classifier = config.model.reads == "images"
    ids = None if is_classifier else (0, config.model.vocabulary())
    model = PipelineModule(
        layers=build_layers(config),
        loss_fn=losses.cross_entropy if is_classifier else nn.cross_entropy,
        metric_fns={"accuracy": losses.accuracy} if is_classifier else None,
        partition_method=pipeline.partition,
        id_ranges=None if ids is None else {"inputs": ids, "targets": ids},
        compute_dtype=jnp.dtype(pipeline.compute_dtype),
    )
    return initialize(
        model,
        mesh=mesh,
        optimizer=build_optimizer(config.optimizer, config.trainer.steps),
        schedule=pipeline.schedule,
        num_microbatches=pipeline.microbatches,
        num_chunks=pipeline.chunks,
        memory_limit=pipeline.memory_limit,
        remat=pipeline.remat,
        zero=Zero(pipeline.zero, per=pipeline.zero_per),
        layer_norms=config.metrics.layer_norms,
    )


def build_layers(config: Config) -> list[LayerSpec]:
    """The network that a configuration describes, as layers."""
    sizes, packed = model_sizes(config), config.data.packing == "packed"
    if isinstance(sizes, GPTConfig):
        return gpt(sizes, packed=packed)
    if isinstance(sizes, ViTConfig):
        return vit(sizes)
    return llama(sizes, packed=packed)


def model_sizes(config: Config) -> GPTConfig | LlamaConfig | ViTConfig:
    """The sizes of the network that a configuration describes."""
    model = config.model
    given: Any = dict(
        num_layers=model.layers,
        width=model.width,
        num_heads=model.heads,
        dropout=model.dropout,
        norm_eps=model.norm_eps,
        rotary_theta=model.rotary_theta,
        patch_size=model.patch_size,
        pooling=model.pooling,
        num_classes=model.classes,
    )
    given = {name: value for name, value in given.items() if value is not None}
    ratio = model.hidden_features // model.width
    if model.network == "vit":
        return ViTConfig(mlp_ratio=ratio, **given)
    given |= dict(
        vocab_size=model.vocabulary(),
        tied=model.tied,
        sequence_parallel=config.pipeline.sequence_parallel,
    )
    if model.network == "gpt":
        length = model.positions or config.data.sequence_length
        return GPTConfig(sequence_length=length, mlp_ratio=ratio, **given)
    return LlamaConfig(num_kv_heads=model.num_kv_heads, hidden=model.hidden_features, **given)


def _check_devices(pipeline: PipelineConfig) -> None:
    needed, devices = pipeline.num_devices, jax.devices()
    if len(devices) < needed:
        raise MeshError(
            f"pipeline.ranks x data x tensor = {pipeline.ranks} x {pipeline.data} x"
            f" {pipeline.tensor} needs {needed} devices; there are {len(devices)}"
            f" ({devices[0].platform}). Use fewer, or set JAX_PLATFORMS=cpu to simulate them."
        )
