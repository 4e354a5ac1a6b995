"""What of the library takes each field: `module.name(parameter)`, below `jaxpipe`.

For those who call it themselves, and to find the code that a field ends in.
"""


def counterparts_of(field: str) -> list[str]:
    """Dotted names, with the parameter if there is one.

    Args:
      field: its whole name.

    >>> counterparts_of("pipeline.zero_per"), counterparts_of("watch.save")
    (['jaxpipe.Zero(per)'], ['jaxpipe.watch.Watchdog(limits)'])
    """
    found = _COUNTERPARTS.get(field) or _COUNTERPARTS[field.split(".")[0]]
    return [f"jaxpipe.{name}" for name in found.split()]


def _sizes(parameter: str, *networks: str) -> str:
    return " ".join(f"models.{network}Config({parameter})" for network in networks)


# A component's name stands for those of its fields that are not listed.
_COUNTERPARTS = {
    "model.network": "models.gpt models.llama models.vit",
    "model.layers": _sizes("num_layers", "GPT", "Llama", "ViT"),
    "model.width": _sizes("width", "GPT", "Llama", "ViT"),
    "model.heads": _sizes("num_heads", "GPT", "Llama", "ViT"),
    "model.kv_heads": _sizes("num_kv_heads", "Llama"),
    "model.hidden": f"{_sizes('hidden', 'Llama')} {_sizes('mlp_ratio', 'GPT', 'ViT')}",
    "model.positions": _sizes("sequence_length", "GPT"),
    "model.rotary_theta": _sizes("rotary_theta", "Llama"),
    "model.norm_eps": _sizes("norm_eps", "GPT", "Llama", "ViT"),
    "model.patch_size": _sizes("patch_size", "ViT"),
    "model.pooling": _sizes("pooling", "ViT"),
    "model.classes": _sizes("num_classes", "ViT"),
    "model.dropout": _sizes("dropout", "GPT", "Llama", "ViT"),
    "model.vocab_size": _sizes("vocab_size", "GPT", "Llama"),
    "model.tied": _sizes("tied", "GPT", "Llama"),
    "model.start_from": "pretrained.start_params(path)",
    "data": "data.read_data(config)",
    "data.pattern": "data.Documents(pattern)",
    "data.field": "data.Documents(field)",
    "data.skip_bad": "data.Documents(skip_bad)",
    "data.tokenizer": "data.Bytes data.Subwords(path) data.train_subwords",
    "data.vocab_size": "data.train_subwords(vocab_size) data.open_raw(vocab_size)",
    "data.token_type": "data.open_raw(dtype)",
    "data.packing": "data.TokenSamples(packing) models.gpt(packed) models.llama(packed)",
    "data.sequence_length": "data.TokenSamples(length)",
    "data.cache": "data.read_data(cache)",
    "optimizer": "optimizers.build_optimizer(config)",
    "optimizer.learning_rate": "learning_rate.learning_rate(config)",
    "optimizer.schedule": "learning_rate.learning_rate(config)",
    "optimizer.warmup_steps": "learning_rate.learning_rate(config)",
    "optimizer.final_fraction": "learning_rate.learning_rate(config)",
    "optimizer.decay_fraction": "learning_rate.learning_rate(config)",
    "pipeline.ranks": "make_mesh(pipe)",
    "pipeline.data": "make_mesh(data)",
    "pipeline.tensor": "make_mesh(tensor)",
    "pipeline.sequence_parallel": _sizes("sequence_parallel", "GPT", "Llama"),
    "pipeline.zero": "initialize(zero)",
    "pipeline.zero_per": "Zero(per)",
    "pipeline.microbatches": "initialize(num_microbatches)",
    "pipeline.schedule": "initialize(schedule)",
    "pipeline.chunks": "initialize(num_chunks)",
    "pipeline.memory_limit": "initialize(memory_limit)",
    "pipeline.partition": "PipelineModule(partition_method)",
    "pipeline.remat": "initialize(remat)",
    "pipeline.compute_dtype": "PipelineModule(compute_dtype)",
    "trainer": "trainer.run(config)",
    "trainer.steps": "trainer.run(config) learning_rate.learning_rate(num_steps)",
    "trainer.batch_size": "data.Batches(batch_size)",
    "trainer.seed": "data.Batches(seed) Engine.init",
    "trainer.log_interval": "metrics.Report(log_interval)",
    "trainer.eval_batches": "data.spread(num_batches)",
    "trainer.keep_checkpoints": "Checkpoints(keep)",
    "trainer.keep_interval": "Checkpoints(keep_interval)",
    "trainer.keep_best": "Checkpoints(keep_best)",
    "trainer.checkpoint_patience": "Checkpoints(patience)",
    "trainer.check_interval": "replicas.Replicas",
    "trainer.most_skipped": "metrics.Report(most_skipped)",
    "trainer.spike": "metrics.Report(spike)",
    "trainer.norm_spike": "metrics.Report(norm_spike)",
    "trainer.spike_action": "metrics.Report(skips_spikes) Engine.train_batch",
    "watch": "watch.Watchdog(limits)",
    "watch.data": "data.Batches.starting_at(patience) watch.Watchdog(limits)",
    "metrics.tensorboard": "metrics.TensorBoard",
    "metrics.wandb": "metrics.WeightsAndBiases(project)",
    "metrics.layer_norms": "initialize(layer_norms)",
    "metrics.timeline": "Engine.timeline",
    "metrics.peak_flops": "metrics.StepWork(peak)",
    "metrics.heartbeat": "metrics.heartbeat(interval)",
    "run": "config.choose",
}
