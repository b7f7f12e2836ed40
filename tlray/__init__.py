"""tlray: image transfer learning on Ray.

The jobs are functions, each with the name of its command: `extract`, `verify`, `plan`, `fit`, `finetune`,
`evaluate`, `predict` and `run`. `FeatureSet` and `Model` open what they make. Plugins subclass `Backbone`,
`Head` or `WeightsProvider`. What is not named here may change.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.core.config import EvaluateConfig as EvaluateConfig
    from tlray.core.config import ExtractConfig as ExtractConfig
    from tlray.core.config import FinetuneConfig as FinetuneConfig
    from tlray.core.config import FitConfig as FitConfig
    from tlray.core.config import PredictConfig as PredictConfig
    from tlray.core.errors import JobError as JobError
    from tlray.core.errors import UserError as UserError
    from tlray.evaluation.evaluate import evaluate as evaluate
    from tlray.evaluation.predict import predict as predict
    from tlray.features.extract import extract as extract
    from tlray.features.feature_set import FeatureSet as FeatureSet
    from tlray.features.plan import plan as plan
    from tlray.features.verify import verify as verify
    from tlray.models.interfaces import Backbone as Backbone
    from tlray.models.interfaces import Head as Head
    from tlray.models.interfaces import KnownWeights as KnownWeights
    from tlray.models.interfaces import WeightsProvider as WeightsProvider
    from tlray.models.model import Model as Model
    from tlray.recipes.recipe import run as run
    from tlray.training.finetune import finetune as finetune
    from tlray.training.fit import fit as fit

__version__ = version("tlray")
_MODULES = {
    "core.config": ("EvaluateConfig", "ExtractConfig", "FinetuneConfig", "FitConfig", "PredictConfig"),
    "core.errors": ("JobError", "UserError"),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.predict": ("predict",),
    "features.extract": ("extract",),
    "features.feature_set": ("FeatureSet",),
    "features.plan": ("plan",),
    "features.verify": ("verify",),
    "models.interfaces": ("Backbone", "Head", "KnownWeights", "WeightsProvider"),
    "models.model": ("Model",),
    "recipes.recipe": ("run",),
    "training.finetune": ("finetune",),
    "training.fit": ("fit",),
}
"""Where each name is. It is imported when it is used: `tlray --help` must not wait for Ray and Keras."""
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"tlray.{module}"), name)
    raise AttributeError(f"module 'tlray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
