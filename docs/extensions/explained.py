"""Pages of `python -m minidl.study explain` as a part of the site: a residual block, ResNet-20, VGG-16.

They are written when the site is built, into docs/explained, which git ignores. Sphinx copies that folder as it is.
"""

from models.resnet import BasicBlock
from sources import PACKAGE, ROOT
from sphinx.application import Sphinx
from sphinx.config import Config

from minidl import manual_seed
from minidl.nn import Module
from minidl.study.explain import explain

FOLDER = ROOT / "docs" / "explained"
PAGES = FOLDER / "explain"
TRAINED = ROOT / "examples" / "weights" / "resnet20-cifar10.safetensors"
NETWORKS = {  # file: the arguments of `explain`
    "residual-block": {"network": "explained:residual_block", "input_shape": (32, 32, 16)},
    "resnet20": {"network": "resnet20"},
    "resnet20-trained": {"network": "resnet20", "weights": str(TRAINED)},
    "vgg16": {"network": "vgg16"},
}


def residual_block() -> Module:
    """One block with 16 channels and the identity as its shortcut."""
    manual_seed(0)
    return BasicBlock(16, 16, stride=1, shortcut="A")


def write_pages(app: Sphinx, config: Config) -> None:
    """Write what is missing or older than the package."""
    PAGES.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in PACKAGE.rglob("*.*") if path.is_file())
    for name, arguments in NETWORKS.items():
        file = PAGES / f"{name}.html"
        if not file.exists() or file.stat().st_mtime < newest:
            file.write_text(explain(**arguments), encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Write them before Sphinx looks for the folder of html_extra_path (with priority 800)."""
    app.connect("config-inited", write_pages, priority=500)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
