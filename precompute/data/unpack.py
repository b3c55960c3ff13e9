"""Word images in a zip or tar archive, unpacked for as long as they are read."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from ...shared.errors import DataError
from ...shared.progress import progress_bar

_JUNK = "__MACOSX"
"""A folder that macOS puts into zip files, with a file beside every picture."""


@contextmanager
def unpacked(source: Path, place: Path, on_problem: Callable[[str], None]) -> Iterator[Path]:
    """Yield a folder: `source` itself, or what is in it if it is an archive.

    Folders that hold one folder and nothing else are gone into.

    Args:
        source: A folder, or a zip or tar file, compressed or not.
        place: Folder to unpack into, which is removed afterwards, and before if it is there.
        on_problem: Is told of each member that would lie elsewhere, which is left out.

    Raises:
        DataError: it is neither, or damaged.
    """
    if source.is_dir():
        yield source
        return
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        try:
            _unpack(source, place, on_problem)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as e:
            # RuntimeError is what a zip file with a password raises.
            raise DataError(f"{source} cannot be unpacked: {e}") from e
        folder = place
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            (folder,) = inside
        try:
            yield folder
        except DataError as e:
            # Where it lay for a while tells nobody anything.
            raise DataError(str(e).replace(str(folder), str(source))) from e
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _unpack(source: Path, place: Path, on_problem: Callable[[str], None]) -> None:
    def is_wanted(name: str) -> bool:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            on_problem(f"{name}: leads out of the archive, not unpacked")
            return False
        return _JUNK not in path.parts and not path.name.startswith("._")

    def checked(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        if not is_wanted(member.name):
            return None
        try:
            return tarfile.data_filter(member, folder)
        except tarfile.FilterError as e:
            on_problem(f"{member.name}: not unpacked: {e}")
            return None

    progress = partial(progress_bar, unit="file", desc="unpack")
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in progress(archive.namelist()):
                if is_wanted(name):
                    archive.extract(name, place)
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as archive_of_tar:
            for member in progress(archive_of_tar):
                archive_of_tar.extract(member, place, filter=checked)
    else:
        raise DataError(
            f"{source} is neither a folder nor a zip or tar archive; pass the folder of the images"
        )
