"""Entry point `python -m deformable_detr.cli`: the command `ddetr`, for launchers such as torchrun."""

from deformable_detr.cli.main import run

if __name__ == "__main__":
    run()
