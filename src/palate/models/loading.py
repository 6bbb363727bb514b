"""Loading models and tokenizers: safetensors only, no remote code unless asked, one clear line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from palate.data.containers import hub
from palate.data.templates import freeze_clock
from palate.errors import ModelError, in_one_line
from palate.models.adapters import (
    ADAPTER_WEIGHTS,
    add_lora,
    base_revision,
    check_intact,
    holds_adapters,
    load_adapters,
    read_base,
)
from palate.models.attention import use_rows
from palate.models.compiled import use_compiled
from palate.models.model import Model
from palate.models.vision import vision_layout
from palate.models.vision_parts import freeze_parts, trained_modules
from palate.recipes.schema import ModelRecipe

NO_HUB = "no such folder, not in the local cache, and the hub cannot be reached"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def hub_is_needed_and_absent(path: str) -> bool:
    """Whether `path` must come from the hub, and the hub cannot be reached.

    Raises:
        ModelError: `path` is written like a folder and there is none.
    """
    if Path(path).expanduser().exists():
        return False
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"{path}: no such folder")
    return hub.unreachable()


def load_tokenizer(recipe: ModelRecipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token where it has none, its templates' clock stopped.

    Raises:
        ModelError: unreadable, or without an end-of-sequence token.
    """
    offline = hub_is_needed_and_absent(recipe.path)
    with readable(recipe.path, NO_HUB if offline else None, what="tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            recipe.path,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{recipe.path}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any id serves.
        tokenizer.pad_token = tokenizer.eos_token
    freeze_clock(tokenizer)
    return tokenizer


def load_model(recipe: ModelRecipe, path: str | None = None) -> PreTrainedModel:
    """The language model of a recipe (or of another `path`), dropout off, without adapters.

    Raises:
        ModelError: unreadable, not a language model, or files that do not hold exactly its weights;
            in one line.
    """
    source = path or recipe.path
    # Another path is another model: the revision is not of it.
    at = recipe if source == recipe.path else recipe.model_copy(update={"revision": None})
    auto: Any = AutoModelForCausalLM
    if vision_layout(load_config(source, at)) is not None:
        auto = AutoModelForImageTextToText
    loaded: PreTrainedModel = from_pretrained(auto, source, at)
    disable_dropout(loaded)
    return loaded


def from_pretrained(
    auto: Any,
    source: str,
    recipe: ModelRecipe,
    *,
    what: str = "model",
    surplus: str | None = None,
) -> Any:
    """A model of an auto class, from safetensors alone, in a recipe's dtype and revision.

    Args:
        what: it is called where it cannot be read.
        surplus: pattern of weights that the files may hold besides the model's: a head that is
            replaced.

    Raises:
        ModelError: unreadable, or files that do not hold exactly the model's weights.
    """
    check_intact(Path(source).expanduser())
    config = load_config(source, recipe, what=what)
    offline = hub_is_needed_and_absent(source)
    with readable(source, NO_HUB if offline else None, what=what):
        model, report = auto.from_pretrained(
            source,
            config=config,
            dtype=DTYPES[recipe.dtype],
            attn_implementation=recipe.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
        )
    check_weights(report, source, model, surplus=surplus)
    if recipe.attn_implementation is None:
        # As in training, where no row's numbers depend on its batch.
        use_rows(model)
    use_compiled(model)
    return model


def load_config(source: str, recipe: ModelRecipe, *, what: str = "model") -> Any:
    """The configuration of a model, in a recipe's revision.

    Raises:
        ModelError: unreadable, or adapters in place of a model.
    """
    check_whole(source)
    offline = hub_is_needed_and_absent(source)
    with readable(source, NO_HUB if offline else None, what=what):
        return AutoConfig.from_pretrained(
            source,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
        )


@contextmanager
def readable(source: str, reason: str | None = None, *, what: str = "model") -> Iterator[None]:
    """Turns what the libraries raise into one line that names what was read.

    Args:
        reason: to give in place of theirs.
    """
    try:
        yield
    except (ModelError, AssertionError):
        raise
    except Exception as error:
        text = reason or f"no readable {what}: {in_one_line(error, 300)}"
        raise ModelError(f"{source}: {text}") from error


def check_whole(path: str) -> None:
    """Refuses a folder that holds adapters and no model.

    Raises:
        ModelError: says what makes one of them.
    """
    folder = Path(path).expanduser()
    if holds_adapters(folder) and not (folder / "config.json").exists():
        raise ModelError(
            f"{path}: LoRA adapters alone; `palate merge {path} -o FOLDER` makes a model of them"
        )


def check_weights(
    report: Mapping[str, Any], source: str, model: nn.Module, *, surplus: str | None = None
) -> None:
    """Refuses files that do not hold exactly a model's weights.

    transformers draws what is missing at random, and leaves out what is too much: of a
    configuration with too few layers, the last ones.

    Args:
        report: what transformers says of loading. surplus: pattern of weights that may be too much.

    Raises:
        ModelError: names the first weights of that kind.
    """
    name = type(model).__name__
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source}: holds adapters beside a model; `palate merge` adds them to it")
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{source}: no weights {_few(missing)} for {name}")
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys") or ())
    if mismatched:
        raise ModelError(f"{source}: weights {_few(mismatched)} have other shapes than {name}'s")
    extra = sorted(report["unexpected_keys"])
    if surplus is not None:
        extra = [key for key in extra if not re.search(surplus, key)]
    if extra:
        raise ModelError(
            f"{source}: weights {_few(extra)} have no place in {name}: its config.json describes "
            "another model than its files hold"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def load_policy(recipe: ModelRecipe, *, memory_mb: int = 256) -> Model:
    """The trainable policy of a recipe: full weights, or frozen weights with new adapters."""
    model = load_model(recipe)
    hf: nn.Module = model
    if recipe.lora is None:
        freeze_parts(model, recipe)
    else:
        trained = trained_modules(model, recipe)
        revision = base_revision(recipe)
        hf = add_lora(model, recipe.lora, revision=revision, trained=trained)
    return Model.policy(hf, memory_mb=memory_mb)


def load_trained(folder: Path, recipe: ModelRecipe, *, memory_mb: int = 256) -> Model:
    """A policy saved by `Model.save`: full weights, or adapters on the recipe's model.

    Raises:
        ModelError: unreadable, or adapters that were trained on other base weights.
    """
    if holds_adapters(folder):
        base = load_model(recipe)
        check_base(folder / ADAPTER_WEIGHTS, base, recipe)
        hf: nn.Module = load_adapters(base, folder)
    else:
        hf = load_model(recipe, str(folder))
    return Model.policy(hf, memory_mb=memory_mb)


def check_base(
    file: Path,
    base: PreTrainedModel,
    recipe: ModelRecipe,
    *,
    load: Callable[[ModelRecipe], nn.Module] = load_model,
    digest: str | None = None,
) -> None:
    """Refuses a base model that has other weights than those that adapters were trained on.

    Args:
        file: the adapters' weights. base: what `load` made of `recipe`. digest: of it, where known.

    Raises:
        ModelError: naming the base.
    """
    trained_on = read_base(file)
    if trained_on is None:
        return
    then, dtype = trained_on
    if dtype != recipe.dtype:
        # Rounded otherwise, the weights have another digest.
        now = weights_digest(load(recipe.model_copy(update={"dtype": dtype})))
    else:
        now = digest or weights_digest(base)
    if then != now:
        raise ModelError(
            f"{file.parent}: was trained on other weights than {recipe.path} holds now (digest "
            f"{then[:12]} then, {now[:12]} now): give it the base or the revision of then"
        )


_DROPOUTS = ("dropout", "dropout_prob", "_pdrop", "layerdrop")


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: the reference must see what the policy sees."""
    holders: list[Any] = [model.config, model.config.get_text_config()]  # type: ignore[union-attr, operator]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        holders.append(module)
    # Some families keep the probability in a number of their own, and call the function with it.
    for holder in holders:
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and name.endswith(_DROPOUTS):
                setattr(holder, name, 0.0)


_ADDED_LEVELS = re.compile(r"^base_model\.model\.|\.base_layer\b|\.original_module\b")
"""Of names in a model with adapters."""


def weights_digest(model: nn.Module) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of all weights but adapters'."""
    named = {
        _ADDED_LEVELS.sub("", name): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }
    return tensors_digest(named)


def tensors_digest(named: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for plain, tensor in sorted(named.items()):
        digest.update(f"{plain}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
