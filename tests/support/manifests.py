"""Manifests of feature sets and models that were never made, as JSON values."""

from typing import Any

PROVENANCE = {
    **{"backbone": "grey-pixels", "package": "tlray 0.1.0", "weights": "none", "weights_sha256": "0" * 64},
    **{"cut": "grey_pixels", "preprocess": "imagenet", "image_size": 28},
    **{"precision": "float32", "store": "float32"},
}
_SHARED: dict[str, Any] = {
    **{"provenance": PROVENANCE, "classes": ["a", "b"], "versions": {}, "created": "now"},
    **{"rows": 0, "errors": 0, "seconds": 1.0},
}


def feature_set_json(**changes: Any) -> dict[str, Any]:
    """The manifest of a finished feature set with no rows."""
    job = {"format": "tlray-features/2", "images": "elsewhere", "split": None, "seed": None}
    return {
        **{**_SHARED, "format": "tlray-features/2", "feature_shape": [2]},
        **{"job": {**job, "max_pixels": 100, "provenance": PROVENANCE}},
        **{"rows_per_class": {}, "splits": {}, "shards": 0, "passed_over": 0, "images": 0},
        **{"images_per_second": 0.0, "limited_by": "nothing", "time": None},
        **changes,
    }


def model_json(**changes: Any) -> dict[str, Any]:
    """The manifest of a finished model."""
    return {
        **{**_SHARED, "format": "tlray-model/1", "job": {"training": {}}, "end": "end", "head": "linear"},
        **{"images": "elsewhere", "split": None, "split_seed": None, "stages": [], "validation_rows": 0},
        **{"epochs": 1, "kept_epoch": 1, "stopped_epoch": None, "trainable_tensors": 2, "tensors": 2},
        **{"metrics": {"loss": 0.5}, "history": [{"epoch": 1, "loss": 0.5}]},
        **{"limited_by": "training", "time": {"training": 1.0, "waited": 0.0}},
        **changes,
    }
