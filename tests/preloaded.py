"""Imports of the processes that tests fork, made once; shapes are checked in them."""

from jaxtyping import install_import_hook

install_import_hook("deformable_detr", "beartype.beartype")

import hotcoco  # noqa: E402, F401
import timm  # noqa: E402, F401

import deformable_detr.cli.main  # noqa: E402
import deformable_detr.data.loader  # noqa: E402
import deformable_detr.evaluation.evaluate  # noqa: E402
import deformable_detr.report.write  # noqa: E402
import deformable_detr.training.train  # noqa: E402, F401
