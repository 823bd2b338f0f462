"""A plan as people look at it: the adapters, and which modules they adapt."""

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from jaxmerge.reports.tables import Columns, span, table

if TYPE_CHECKING:
    from jaxmerge.io import Plan


def adapter_table(found: "Plan") -> Columns:
    """A line for each adapter: what it is of and how large it is."""
    columns = ("adapter", "base model", "kind", "modules>", "ranks>", "scales>")
    rows = [
        (
            *(a.name, a.base_model or "-"),
            *(a.peft_type if a.kind == "peft" else a.kind, a.modules),
            *(span(a.ranks), span(a.scales), a.dtype, len(a.heads) or "-"),
        )
        for a in found.adapters
    ]
    return table((*columns, "dtype", "heads>"), rows)


def coverage_table(found: "Plan") -> Columns:
    """Of the modules of each kind, how many every task adapts, and at which rank."""
    groups = defaultdict(list)
    for name, module in found.modules.items():
        groups[_leaf(name), module.kind, module.shape].append(module)
    rows = []
    for (leaf, kind, shape), modules in groups.items():
        cells = []
        for task in range(len(found.adapters)):
            ranks = [m.ranks[task] for m in modules if m.ranks[task]]
            count = f"{len(ranks)}/{len(modules)}"
            cells.append(f"{count} r={span(ranks)}" if ranks else "absent")
        total = span(m.total_rank for m in modules)
        rows.append((f"{leaf} {shape[0]}x{shape[1]}", kind, *cells, total))
    names = [adapter.name for adapter in found.adapters]
    return table(("modules", "kind", *names, "total rank>"), rows)


def _leaf(name: str) -> str:
    """The end of a name, by which modules that are alike are counted together.

    >>> _leaf("h.0.fc"), _leaf("lora_unet_mid_block_resnets_0_conv1"), _leaf("unet:3")
    ('fc', 'conv1', 'unet')
    """
    if name.startswith(("lora_", "lycoris_")):
        return re.split(r"_\d+_", name)[-1]
    return name.partition(":")[0].rpartition(".")[2]
