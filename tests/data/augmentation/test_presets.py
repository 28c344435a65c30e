import inspect

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.pipeline import augment
from deformable_detr.data.augmentation.presets import PRESETS, find_preset
from deformable_detr.data.augmentation.settings import Augmentation
from tests.data.drawn import generator, random_scene


def test_the_paper_is_the_default():
    assert find_preset("paper") == Augmentation()
    assert len({preset() for preset in PRESETS.values()}) == len(PRESETS) == 4


def test_what_each_is_for():
    assert (find_preset("light").mosaic, find_preset("light").color_jitter) == (0, 0.5)
    strong = find_preset("strong")
    assert min(strong.mosaic, strong.mixup, strong.zoom_out, strong.iou_crop, strong.photometric) > 0
    assert strong.scale_jitter != (1.0, 1.0)
    aerial = find_preset("aerial")
    assert (aerial.hflip, aerial.vflip, aerial.rotate90) == (0.5, 0.5, 0.75)
    assert all(inspect.getdoc(preset) for preset in PRESETS.values())


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="no augmentation called 'stong'; did you mean strong"):
        find_preset("stong")
    with pytest.raises(ConfigError, match="there are paper, light, strong, aerial"):
        find_preset("xyz")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("short_side", [1, 40, 256])
def test_every_preset_at_every_size(name, short_side):
    augmentation = find_preset(name).scaled(short_side)
    assert max(augmentation.short_sides) == short_side
    for seed in range(4):
        scene = random_scene(seed)
        after = augment(
            scene.example(), generator(seed), lambda random, s=scene: s.example(), augmentation=augmentation
        )
        assert min(after.image.size) <= short_side
        assert len(after.boxes_xyxy) == len(after.labels)
