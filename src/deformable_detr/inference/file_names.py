"""Names of files that are written for each image of many folders: none is used twice."""

from deformable_detr.core.short_text import printable

_LONGEST_STEM = 200


class FreeStems:
    """File names without their endings, each given out once."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def take(self, stem: str) -> str:
        """Name that is not used yet: images of different folders may have equal names, or differ in case only.

        What cannot be printed becomes an escape with a percent sign, which file names may hold on every system.

        Args:
            stem: name of the image file, without its ending.
        """
        stem = printable(stem).replace("\\", "%").encode()[:_LONGEST_STEM].decode(errors="ignore")
        free, number = stem, self._names.get(stem.casefold(), 0) + 1
        while number > 1 and (free := f"{stem}-{number}").casefold() in self._names:
            number += 1
        self._names[stem.casefold()] = number
        self._names.setdefault(free.casefold(), 1)
        return free
