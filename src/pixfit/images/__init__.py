"""Read and write picture files, folders, masks, labelled sets; bundled pictures; the published, downloadable sets."""

from pixfit.images.bundled import BUNDLED
from pixfit.images.image import Image, ImageError
from pixfit.images.labelled import LabelledSet, load_labelled
from pixfit.images.read import MAX_PIXELS, load, load_folder, load_mask
from pixfit.images.sets import SETS, DataSet, FoundSet, SetFile, data_folder, find_set, load_set
from pixfit.images.sheet import contact_sheet
from pixfit.images.write import BandWriter, check_writable, save

__all__ = [
    "BUNDLED",
    "MAX_PIXELS",
    "SETS",
    "BandWriter",
    "DataSet",
    "FoundSet",
    "Image",
    "ImageError",
    "LabelledSet",
    "SetFile",
    "check_writable",
    "contact_sheet",
    "data_folder",
    "find_set",
    "load",
    "load_folder",
    "load_labelled",
    "load_mask",
    "load_set",
    "save",
]
