"""The run's YAML file: every entry with its type and default, and how a file is read."""

from ssd.config.file import load_config
from ssd.config.schema import Config, ConfigError

__all__ = ["Config", "ConfigError", "load_config"]
