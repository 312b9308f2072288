"""Validated masks with their images: read from folders, checked, published to the registry and read back."""

from vplab.client.datasets.checks import check_dataset
from vplab.client.datasets.coco import read_coco, write_coco
from vplab.client.datasets.files import read_dataset
from vplab.client.datasets.folder import read_folder, write_folder
from vplab.client.datasets.publishing import publish_dataset
from vplab.client.datasets.shots import choose_shots
from vplab.client.datasets.values import Dataset, DatasetItem, DatasetLimits, PackedMasks

__all__ = [
    "Dataset",
    "DatasetItem",
    "DatasetLimits",
    "PackedMasks",
    "check_dataset",
    "choose_shots",
    "publish_dataset",
    "read_coco",
    "read_dataset",
    "read_folder",
    "write_coco",
    "write_folder",
]
