"""Maps of explanations laid over the photo: chained map, gradients, and DETR's attention."""

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from deformable_detr.core.errors import counted
from deformable_detr.inference.drawing import PAPER, contact_sheet, font_of
from deformable_detr.inference.explanation import Explanation, fewest_holding
from deformable_detr.inference.explanation_colors import DARKEST, HEAT, shades
from deformable_detr.inference.explanation_legend import LegendRow, beside_legend, panel_of, title_rows
from deformable_detr.inference.explanation_object import around, draw_boxes, draw_names, shown_image
from deformable_detr.inference.explanation_view import INK, LONG_SIDE, View, view_of
from deformable_detr.inference.explanation_words import percent_of, share_in_box, stride_of
from deformable_detr.inference.pictures import ImageLike
from deformable_detr.inference.pixel_gradients import TARGETS

_SIGMA_PX = 4.0
_TITLE = 30
_MOST_SHRUNK = 1.5


def draw_chained(
    image: ImageLike, explanation: Explanation, index: int, *, long_side: int = LONG_SIDE, legend: bool = True
) -> Image.Image:
    """Picture of the chained map of one detection: along which paths attention could carry pixels to it.

    Args:
        image: image that was explained.
        explanation: the explanation.
        index: position in its detections.
        long_side: longer side of the view in pixels.
        legend: whether there is a legend on the right.

    Raises:
        ValueError: the image has another size.
    """
    picture = shown_image(image, explanation)
    width, height = explanation.input_size_wh
    heat = explanation.heat(index, (width, height))
    view = view_of(picture, (0.0, 0.0, *map(float, picture.size)), long_side=long_side, gray=True)
    _lay_over(view, heat)
    draw_boxes(view, explanation, index)
    draw_names(view, explanation, index)
    if not legend:
        return view.picture
    chained = explanation.chained
    inside = float(chained.mass[index].sum())
    in_box = inside * share_in_box(heat, explanation.detections.boxes_xyxy[index], explanation.size_wh)
    rows = [
        *title_rows(explanation, index, "Chained map of all layers"),
        LegendRow("from 0 to the largest, darker as its square root", bar=shades()),
        LegendRow("Paths along which attention could carry features of the encoder's input to this detection."),
        LegendRow(f"In the box: {percent_of(in_box)}"),
        LegendRow(f"Elsewhere in the image: {percent_of(inside - in_box)}"),
        LegendRow(f"Outside the image: {percent_of(float(chained.outside[index]))}"),
        LegendRow(f"In the queries as they entered: {percent_of(float(chained.residue[index]))}"),
        LegendRow("What the backbone has seen around each cell is not included: the true reach is larger."),
        LegendRow("Where it could have looked, not what mattered."),
    ]
    return beside_legend(view, rows, picture)


def draw_gradients(
    image: ImageLike, explanation: Explanation, index: int, *, long_side: int = LONG_SIDE
) -> Image.Image:
    """Picture of the gradients of one detection: five maps, each on its own scale, smoothed with a Gaussian of 4 px.

    Args:
        image: image that was explained.
        explanation: the explanation.
        index: position in its detections.
        long_side: width of the whole picture in pixels, about.

    Raises:
        ValueError: the image has another size, or no gradients were taken.
    """
    if explanation.gradients is None:
        raise ValueError("no gradients were taken: explain(..., gradients='direct') does that")
    titles = {"x": "x of the centre", "y": "y of the centre", "w": "width", "h": "height", "class": "class logit"}
    picture = shown_image(image, explanation)
    smooth = smoothed(explanation.gradients[index], _SIGMA_PX)
    cells = []
    for name in ("x", "y", "w", "h", "class"):
        heat = smooth[TARGETS.index(name)]
        view = view_of(picture, around(explanation, index), long_side=max(160, long_side * 7 // 16), gray=True)
        _lay_over(view, heat)
        draw_boxes(view, explanation, index)
        unit = "" if name == "class" else " px"
        text = f"{titles[name]}: darkest {float(heat.max()):.2g}{unit}"
        cells.append(_titled(view.picture, text))
    kind = "without what came through earlier boxes" if explanation.gradient_kind == "direct" else "all paths"
    rows = [
        *title_rows(explanation, index, f"Gradients in the pixels ({explanation.gradient_kind}: {kind})"),
        LegendRow("from 0 to the darkest of each map, as its square root", bar=shades()),
        LegendRow(
            "How far the value moves when a pixel changes by one unit of the normalised input, "
            f"smoothed over {_SIGMA_PX:g} px. px are those of the network's input."
        ),
        LegendRow("Pale does not mean unused: a value that is saturated has no gradient."),
    ]
    width, panel = max(160, long_side * 7 // 16), panel_of(rows)
    if panel.height <= _MOST_SHRUNK * cells[0].height:
        return contact_sheet([*cells, panel], 3, cell_width=width)
    # Beside maps of a very wide view, the legend would be too small to read.
    sheet = contact_sheet(cells, 3, cell_width=width)
    canvas = Image.new("RGB", (max(sheet.width, panel.width), sheet.height + panel.height), PAPER)
    canvas.paste(sheet, (0, 0))
    canvas.paste(panel, (0, sheet.height))
    return canvas


def _titled(picture: Image.Image, text: str) -> Image.Image:
    """Picture with a line of text above it."""
    cell = Image.new("RGB", (picture.width, picture.height + _TITLE), PAPER)
    cell.paste(picture, (0, _TITLE))
    ImageDraw.Draw(cell).text((0, 0), text, fill=INK, font=font_of(round(0.7 * _TITLE), is_plain=text.isascii()))
    return cell


def smoothed(maps: Float[Tensor, "maps height width"], sigma: float) -> Float[Tensor, "maps height width"]:
    """Maps after a Gaussian filter; sums stay but for what goes over the edges.

    Args:
        maps: the maps.
        sigma: standard deviation of the Gaussian in pixels.
    """
    reach = int(3 * sigma) + 1
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype)
    kernel = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    across = torch.nn.functional.conv2d(maps[:, None], kernel, padding=(0, reach))
    return torch.nn.functional.conv2d(across, kernel.transpose(2, 3), padding=(reach, 0))[:, 0]


def draw_dense(
    image: ImageLike,
    explanation: Explanation,
    index: int,
    *,
    layer: int,
    head: int | None = None,
    long_side: int = LONG_SIDE,
    legend: bool = True,
) -> Image.Image:
    """Picture of DETR's attention of one detection in one decoder layer.

    Args:
        image: image that was explained.
        explanation: the explanation.
        index: position in its detections.
        layer: position of the decoder layer, from 0.
        head: only this head, from 0; the mean of all if left out.
        long_side: longer side of the view in pixels.
        legend: whether there is a legend on the right.

    Raises:
        ValueError: the image has another size, or there is no such head.
    """
    heads = explanation.dense_maps[layer][index]
    if head is not None and not 0 <= head < len(heads):
        raise ValueError(f"there is no head {head}: the network has heads 0 to {len(heads) - 1}")
    picture = shown_image(image, explanation)
    weights = heads.mean(0) if head is None else heads[head]
    view = view_of(picture, (0.0, 0.0, *map(float, picture.size)), long_side=long_side, gray=True)
    _lay_over(view, weights, power=1.0)
    draw_boxes(view, explanation, index)
    draw_names(view, explanation, index)
    if not legend:
        return view.picture
    half = int(fewest_holding(weights.flatten(), 0.5))
    inside = share_in_box(weights, explanation.detections.boxes_xyxy[index], explanation.size_wh)
    height, width = explanation.spatial_shapes[0]
    rows = [
        *title_rows(explanation, index, f"Decoder layer {layer + 1} of {len(explanation.dense_maps)}"),
        LegendRow(f"weight of a cell, from 0 to {float(weights.max()):.2g}", bar=shades(1.0)),
        LegendRow(
            f"{'Mean of all heads' if head is None else f'Head {head} of {len(heads)}'}. The query weighs all "
            f"{height} x {width} cells of stride {stride_of(explanation, 0)}."
        ),
        LegendRow(f"Half of the weight: {counted(half, 'cell')} of {weights.numel()}"),
        LegendRow(f"In the box: {percent_of(inside)}"),
        LegendRow("A cell has seen more of the image than it covers, through backbone and encoder."),
    ]
    return beside_legend(view, rows, picture)


def _lay_over(view: View, heat: Float[Tensor, "height width"], power: float = 0.5) -> None:
    """Lay a map of the whole image over a view: the more, the darker, as a power; the root shows small values."""
    height, width = heat.shape
    largest = max(float(heat.max()), 1e-30)
    alpha = (heat / largest).clamp(min=0) ** power * DARKEST * 255
    mask = Image.fromarray(alpha.round().byte().cpu().numpy())
    ratio_x, ratio_y = width / view.size_wh[0], height / view.size_wh[1]
    left, top, right, bottom = view.window
    box = (left * ratio_x, top * ratio_y, right * ratio_x, bottom * ratio_y)
    veil = mask.resize(view.picture.size, Image.Resampling.BILINEAR, box=box)
    view.picture.paste(HEAT, (0, 0), veil)
