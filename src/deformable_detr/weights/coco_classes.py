"""Class names of COCO's category ids 0..90; in the published models channel i of a class head is category id i."""

# Eleven numbers have no category in the data set, so no image trains these channels.
_NAMES = (
    "unused-0 person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant unused-12 "
    "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe unused-26 backpack "
    "umbrella unused-29 unused-30 handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat "
    "baseball_glove skateboard surfboard tennis_racket bottle unused-45 wine_glass cup fork knife spoon bowl banana "
    "apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed unused-66 "
    "dining_table unused-68 unused-69 toilet unused-71 tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator unused-83 book clock vase scissors teddy_bear hair_drier toothbrush"
)
UNUSED = "unused-"
"""Prefix of the names of channels without a category."""
COCO_CLASSES = tuple(name.replace("_", " ") for name in _NAMES.split())
"""Class names by category id, 91 of them; names that start with `UNUSED` belong to no category."""
CATEGORY_IDS = tuple(number for number, name in enumerate(COCO_CLASSES) if not name.startswith(UNUSED))
"""Category ids of the 80 classes that the data set has."""
