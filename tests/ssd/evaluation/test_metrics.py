from typing import get_args

from ssd.config.schema import EvalConfig
from ssd.evaluation.metrics import METRICS


def test_the_configuration_accepts_every_metric():
    assert set(get_args(EvalConfig.model_fields["metric"].annotation)) == set(METRICS)
