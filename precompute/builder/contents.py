"""What a cache is of: pictures of words, words alone, or natural images.

    pictures of words   LMDBs; views, image arrays, and a text table (`cache build`)
    words               the lines of a file; a text table and nothing else (`cache labels`)
    natural images      the files of a folder; one array, and no text (`cache pool`)

All have rows that are keyed by (source, index), units, records and a seal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...shared.cache import names
from ...shared.cache.spec import SourceSpec, TeacherSpec, ViewSpec
from ...shared.clip.weights import image_px
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from .config import BuildConfig, LabelsConfig, PoolConfig, SourceOptions
from .pictures import ImageFolder, PictureSource
from .scan import Scan, scan_images, scan_sources, scan_words


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Where the rows of a cache come from, and what is stored of them."""

    command: str
    """What makes such a cache."""
    advice: str
    """What to do where another cache is."""
    places: Sequence[Path]
    """What the user named."""
    pictures: Mapping[str, Path | PictureSource]
    """Sources by name."""
    found: Callable[[], Sequence[SourceSpec]]
    """Looks at the sources, as far as that is quick; a digest of "" is not known yet."""
    scan: Callable[[], Scan]
    view: ViewSpec
    tokenizer: str = ""
    """How the text table reads labels; empty: there is none."""
    template: str = ""
    """Of prompts."""


def pictures_of_words(config: BuildConfig) -> Contents:
    """Return what `cache build` makes a cache of."""
    config.require_image_taps()
    paths = find_named_lmdbs(config.data)
    return Contents(
        command="cache build",
        advice="or build this one into another folder with --out",
        places=config.data,
        pictures=paths,
        found=lambda: [
            SourceSpec(name=name, num_samples=len(WordLmdb(path)), digest="")
            for name, path in paths.items()
        ],
        scan=lambda: scan_sources(paths, config.labels),
        view=view_of(config, config.augment),
        tokenizer="char",
    )


def view_of(config: SourceOptions, augment: str) -> ViewSpec:
    """Return how pictures become views, if they are augmented so."""
    height_px, width_px = config.view_size
    return ViewSpec(augment=augment, tall=config.tall, height_px=height_px, width_px=width_px)


def words_alone(config: LabelsConfig) -> Contents:
    """Return what `cache labels` makes a cache of."""
    scan = scan_words(config.words, config.labels)
    return Contents(
        command="cache labels",
        advice="build this one into another folder with --out",
        places=(config.words,),
        pictures=scan.pictures,
        found=lambda: scan.sources,
        scan=lambda: scan,
        view=ViewSpec(),
        tokenizer=config.tokenizer,
        template=config.prompt,
    )


def natural_images(config: PoolConfig, teacher: TeacherSpec) -> Contents:
    """Return what `cache pool` makes a cache of, within another of that teacher."""
    side_px = image_px(teacher.model)
    scan = scan_images(ImageFolder(config.images, config.count, config.seed))
    return Contents(
        command="cache pool",
        advice=f"remove {config.cache / names.POOL_FOLDER}, which holds nothing else, and run this "
        "again",
        places=(config.images,),
        pictures=scan.pictures,
        found=lambda: scan.sources,
        scan=lambda: scan,
        view=ViewSpec(height_px=side_px, width_px=side_px, resize=names.CENTER_CROP),
    )
