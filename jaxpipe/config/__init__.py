"""What a run is, as frozen dataclasses; how it is read, checked and kept."""

from jaxpipe.config.config import Config as Config
from jaxpipe.config.config import by_field as by_field
from jaxpipe.config.config import differences as differences
from jaxpipe.config.explain import explain as explain
from jaxpipe.config.metrics import MetricsConfig as MetricsConfig
from jaxpipe.config.model import ModelConfig as ModelConfig
from jaxpipe.config.optimizer import OptimizerConfig as OptimizerConfig
from jaxpipe.config.pipeline import PipelineConfig as PipelineConfig
from jaxpipe.config.run import TOKENS_FOLDER as TOKENS_FOLDER
from jaxpipe.config.run import RunConfig as RunConfig
from jaxpipe.config.run_directory import Resume as Resume
from jaxpipe.config.run_directory import RunDirectory as RunDirectory
from jaxpipe.config.run_directory import choose as choose
from jaxpipe.config.trainer import TrainerConfig as TrainerConfig
from jaxpipe.config.validate import problems_of as problems_of
from jaxpipe.config.validate import validate as validate
from jaxpipe.config.watch import WatchConfig as WatchConfig
from jaxpipe.config.yaml_file import parse as parse
from jaxpipe.config.yaml_file import read as read
from jaxpipe.config.yaml_file import read_with_lines as read_with_lines
from jaxpipe.config.yaml_file import to_yaml as to_yaml
from jaxpipe.config.yaml_file import yaml_of_changes as yaml_of_changes
from jaxpipe.data.config import DataConfig as DataConfig
