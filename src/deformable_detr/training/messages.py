"""What a run says of itself before it begins."""

from deformable_detr.core.progress import Reporter
from deformable_detr.training.acceleration import checkpointed_parts
from deformable_detr.training.freezing import count
from deformable_detr.training.optimizer import learning_rate
from deformable_detr.training.state import Session


def introduce(session: Session, reporter: Reporter) -> None:
    """Say what will be done, before it is done."""
    config, data, model, precision = session.config, session.data, session.config.model, session.precision
    classes = data.train.classes
    objects = data.train.num_objects
    reporter.say(f"data: {data.train.source}")
    reporter.say(
        f"{len(data.train)} images with {objects} objects of {len(classes)} classes "
        f"({', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}); judged by {data.origin}"
    )
    if data.num_problems:
        left_out = f", {data.num_bad_images} images left out" if data.num_bad_images else ""
        reporter.say(f"problems in the annotations: {data.num_problems}{left_out}; `ddetr check-data` lists them")
    parameters = count(session.model)
    backbone = f"backbone {model.backbone} (weights: {model.backbone_weights})"
    if session.origin.weights:
        backbone = f"backbone {model.backbone}, all weights from {session.origin.weights}"
    frozen = f" ({', '.join(config.freeze)})" if config.freeze else ""
    reporter.say(
        f"model: {model.variant}, {backbone}, {parameters.trained / 1e6:.2f} million parameters to train and "
        f"{parameters.frozen / 1e6:.2f} million frozen{frozen}, on {session.detector.device} in {precision.name}"
    )
    if precision.is_slow:
        reporter.say("this processor has no instructions for bfloat16: --precision float32 is several times as fast")
    if config.activation_checkpointing:
        reporter.say(f"computed twice instead of remembered: {', '.join(checkpointed_parts(session.model))}")
    if config.compile:
        gain = "; on a processor steps are no quicker for it" if session.detector.device.type == "cpu" else ""
        reporter.say(f"the layers of encoder and decoder are compiled in the first steps, which takes a minute{gain}")
    in_force = learning_rate(config.optimizer, config.batch_size)
    origin = ""
    if config.optimizer.lr_batch_size not in (None, config.batch_size):
        origin = f" ({config.optimizer.lr:g} x sqrt({config.batch_size} / {config.optimizer.lr_batch_size}))"
    reporter.say(
        f"{config.epochs} epochs of {len(session.loader)} steps of {config.batch_size} images, "
        f"learning rate {in_force:.3g}{origin}"
    )
    if config.sharded:
        reporter.say(
            f"sharded: each of {session.ranks.size} processes keeps its part of the weights and of what goes with them"
            if session.sharded
            else "sharded=true has no effect here: there is one process, and it keeps everything"
        )
    reporter.say(f"run folder: {session.folder.path}; Ctrl-C stops, and what is there can be resumed")
