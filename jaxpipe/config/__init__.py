"""What a run is, as frozen dataclasses; how it is read, checked and kept."""

from jaxpipe.config.explain import explain as explain
from jaxpipe.config.run_directory import Resume as Resume
from jaxpipe.config.run_directory import RunDirectory as RunDirectory
from jaxpipe.config.run_directory import by_field as by_field
from jaxpipe.config.run_directory import choose as choose
from jaxpipe.config.run_directory import differences as differences
from jaxpipe.config.schema import Config as Config
from jaxpipe.config.schema import DataConfig as DataConfig
from jaxpipe.config.schema import ModelConfig as ModelConfig
from jaxpipe.config.schema import OptimizerConfig as OptimizerConfig
from jaxpipe.config.schema import PipelineConfig as PipelineConfig
from jaxpipe.config.schema import RunConfig as RunConfig
from jaxpipe.config.schema import TrainerConfig as TrainerConfig
from jaxpipe.config.validate import num_layers as num_layers
from jaxpipe.config.validate import validate as validate
from jaxpipe.config.yaml_file import parse as parse
from jaxpipe.config.yaml_file import read as read
from jaxpipe.config.yaml_file import to_yaml as to_yaml
