"""The names of the authors' COSAM state dicts, and here: for the comparison with their code."""

import re

from torch import Tensor, nn

NAMES = [  # of the authors' state dict, and here; for SE-ResNet-50 the stages have other names
    (r"^base\.layer0", "trunk.stem.0"),
    (r"^base\.(layer\d)", r"trunk.\1"),
    (r"^base\.([01])\.", r"trunk.stem.\1."),
    (r"^base\.(\d)", lambda found: f"trunk.layer{int(found[1]) - 3}"),
    (r"^attention_modules\.attention_modules\.(\d)", r"blocks.\1"),
    (r"\bdim_reduction\b", "space.reduce"),
    (r"\bspatial_mask_summary\b", "space.summary"),
    (r"\bchannelwise_attention\b", "channel.layers"),
    (r"^aggregation\.", "pool."),
]


def load_official(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the authors' state dict, strictly: of a whole network, a COSAM module or a pool."""
    state = dict(state.get("state_dict", state))
    first = 1 if any(key.startswith("base.layer0") for key in state) else 2  # slot of module 0
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"(attention_modules\.)(\d)", lambda m: m[1] + str(int(m[2]) + first), key)
        for pattern, new in NAMES:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    model.load_state_dict(renamed)
