"""Writes tiny data sets in array_record, as tensorflow-datasets lays them out."""

import io
import json

from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets import features as tfds_features
from tensorflow_datasets.core.example_serializer import ExampleSerializer


def write(data_dir, name, features, splits, supervised_keys=None, file_format="array_record"):
    """Writes `{split: [example]}`; returns the folder of version 1.0.0."""
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds_features.FeaturesDict(features)
    features.save_config(folder)
    serializer = ExampleSerializer(features.get_serialized_info())
    for split, examples in splits.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for example in examples:
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, examples in splits.items()
        ],
    }
    if supervised_keys:
        items = [{"featureKey": key} for key in supervised_keys]
        info["supervisedKeys"] = {"tuple": {"items": items}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def write_images(data_dir, name, splits, shape, num_classes, **options):
    """Writes `{split: [(pixels, label)]}`."""
    features = {
        "image": tfds_features.Image(shape=shape),
        "label": tfds_features.ClassLabel(num_classes=num_classes),
    }
    encoded = {
        split: [{"image": _png(pixels), "label": label} for pixels, label in examples]
        for split, examples in splits.items()
    }
    return write(data_dir, name, features, encoded, ("image", "label"), **options)


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "png")
    file.seek(0)
    return file
