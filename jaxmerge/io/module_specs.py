"""The keys of an adapter, as a spec of the factors of every module."""

from collections.abc import Mapping

from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.factors import FactorSpec, factor_spec
from jaxmerge.io.files import CONFIG_FILE
from jaxmerge.io.keys import KeyTable
from jaxmerge.io.tensors import TensorFile
from jaxmerge.refusals import Option


def specs_of(
    table: KeyTable,
    tensors: TensorFile,
    config: AdapterConfig,
    vera_inputs: int | Mapping[str, int] | None,
) -> dict[str, FactorSpec]:
    """module -> spec of its factors, which may be those of VeRA.

    Raises:
      AdapterError: factors that do not fit the config, or a VeRA file that does not
        tell the size of its modules.
    """
    shared = table.projections
    if config.peft_type != "VERA":
        if shared:
            raise AdapterError(
                f"{tensors.path}: holds VeRA projections ({listing(shared.values())}) "
                f"but {CONFIG_FILE} says {config.peft_type}"
            )
        return {
            module: factor_spec(module, parts, tensors, config)
            for module, parts in table.modules.items()
        }
    if set(shared) != {"A", "B"}:
        raise AdapterError(
            f"{tensors.path}: a VeRA adapter without its shared projections; "
            "save it again with save_projection=True"
        )
    if vera_inputs is None and len(table.modules) == 1:
        vera_inputs = tensors.infos[shared["A"]].shape[-1]
    sizes = {module: _inputs_of(module, vera_inputs) for module in table.modules}
    unknown = [module for module, size in sizes.items() if size is None]
    if unknown:
        ends = sorted({module.rpartition(".")[2] for module in unknown})[:8]
        raise AdapterError(
            f"{tensors.path}: a VeRA file does not tell the input size of its modules "
            f"({listing(unknown)}); pass ",
            Option("vera_inputs", tuple(f"{end}=SIZE" for end in ends), tabled=True),
            ", by the ends of their names, or one size for all, ",
            Option("vera_inputs", "SIZE"),
        )
    return {
        module: factor_spec(
            module,
            {**shared, **parts},
            tensors,
            config,
            inputs=sizes[module] or 0,
        )
        for module, parts in table.modules.items()
    }


def _inputs_of(module: str, inputs: int | Mapping[str, int] | None) -> int | None:
    """Input size of a VeRA module: that of all, or of its name's longest ending."""
    if not isinstance(inputs, Mapping):
        return inputs
    ends = [end for end in inputs if f".{module}".endswith(f".{end}")]
    return inputs[max(ends, key=len)] if ends else None
