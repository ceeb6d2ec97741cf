"""Data: data sets, augmentation, and loaders that make batches."""

from minidl.data.augment import (
    CropAndFlip,
    Cutout,
    channel_mean_std,
    normalize,
    per_pixel_mean,
    random_crop,
    random_cutout,
    random_flip,
)
from minidl.data.cifar import load_cifar10, load_cifar100
from minidl.data.dataset import ArrayDataset, Dataset
from minidl.data.image_statistics import ImageStatistics, measure_images
from minidl.data.images import BrokenImageError, ImageFolder, ImageLoader, image_files, read_image, read_names
from minidl.data.loader import AugmentedLoader, DataLoader, DeviceLoader
from minidl.data.shapes import Scenes, make_scenes, make_shapes
from minidl.data.views import (
    RESNET_SIDES,
    VGG_SIDES,
    CentreView,
    ColourComponents,
    CropsView,
    TrainingView,
    WholeView,
    corner_boxes,
    grid_boxes,
)

__all__ = [
    "RESNET_SIDES",
    "VGG_SIDES",
    "ArrayDataset",
    "AugmentedLoader",
    "BrokenImageError",
    "CentreView",
    "ColourComponents",
    "CropAndFlip",
    "CropsView",
    "Cutout",
    "DataLoader",
    "Dataset",
    "DeviceLoader",
    "ImageFolder",
    "ImageLoader",
    "ImageStatistics",
    "Scenes",
    "TrainingView",
    "WholeView",
    "channel_mean_std",
    "corner_boxes",
    "grid_boxes",
    "image_files",
    "load_cifar10",
    "load_cifar100",
    "make_scenes",
    "make_shapes",
    "measure_images",
    "normalize",
    "per_pixel_mean",
    "random_crop",
    "random_cutout",
    "random_flip",
    "read_image",
    "read_names",
]
