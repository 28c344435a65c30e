import numpy as np
import pytest
from pycocotools import mask as coco_mask

from deformable_detr.data.formats.masks import box_around_mask, run_lengths


@pytest.mark.parametrize("seed", range(5))
def test_masks_against_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(40):
        height, width = generator.integers(1, 90, 2).tolist()
        mask = generator.uniform(size=(height, width)) < generator.choice([0.002, 0.1, 0.9])
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        lengths = run_lengths(packed["counts"].decode())
        assert sum(lengths) == height * width
        # Written out, as other programs do.
        flat = mask.ravel(order="F")
        assert np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).tolist() == flat.tolist()
        assert run_lengths(lengths) == lengths
        rows, columns = np.nonzero(mask)
        expected = None
        if mask.any():
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box_around_mask(lengths, height) == expected


@pytest.mark.parametrize("counts", ["\x10", "~~~", "o", "P" * 20, [1, -1], [True], "A@" + chr(200)])
def test_runs_that_are_none(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match="run"):
        run_lengths(counts)
