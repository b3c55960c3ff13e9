"""The forms that label files have, and their names. Imports nothing heavy."""

from __future__ import annotations

LABEL_FILE_NAMES = (
    *(f"{stem}.{suffix}" for stem in ("gt", "labels") for suffix in ("tsv", "txt", "csv", "json")),
    *("rec_gt_train.txt", "rec_gt_test.txt"),
    *("annotation.txt", "annotation_train.txt", "annotation_val.txt", "annotation_test.txt"),
)
"""How a label file is found."""

LABEL_FILES = (
    "gt or labels with .tsv, .txt, .csv or .json, PaddleOCR's rec_gt_*.txt or MJSynth's "
    "annotation*.txt"
)
"""The same in words."""

FORMATS = {
    "tsv": "file<TAB>label",
    "space": "file label",
    "icdar": 'file, "label"',
    "csv": "file,label",
    "json": '{"file": "label"}',
    "mjsynth": "NUMBER_LABEL_NUMBER.jpg",
    "names": "LABEL.jpg",
}
"""What a line is, or a file's name."""

LABEL_FILE_CONTENT = (
    "lines such as 'file<TAB>label', 'file label', 'file, \"label\"' or 'file,label', or JSON "
    '{"file": "label"}, with files relative to the folder'
)
