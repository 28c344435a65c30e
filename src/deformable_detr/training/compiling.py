"""torch.compile for training: layer by layer, once for images of every size."""

import os
import shutil

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import DeformableDETR

_COMPILERS = ("c++", "g++", "clang++", "cl")


def compile_layers(model: DeformableDETR) -> None:
    """Compile every layer of encoder and decoder at its first use; names of parameters stay what they are.

    Layers of one kind share what was compiled, and their shapes stay open: a batch of another size costs nothing. The
    backbone, which is convolutions from a library, and the matching of the loss stay as they are.

    Raises:
        ConfigError: there is no C++ compiler, without which PyTorch can compile nothing.
    """
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(f"compile is true, which needs a C++ compiler, and there is no {' or '.join(wanted)}")
    # On a processor a compiler's own random numbers come one after another, and take longer than all that it saves.
    on_processor = next(model.parameters()).device.type == "cpu"
    options = {"fallback_random": True} if on_processor else None
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.compile(dynamic=True, options=options)
