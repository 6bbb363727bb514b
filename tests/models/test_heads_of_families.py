"""`Model.vocabulary_head` against the logits that each family's own model gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from palate.kernels import token_stats
from palate.models.model import Model
from palate.testing import full_logits
from tiny import COMMON, VOCABULARY

SHAPE = {key: value for key, value in COMMON.items() if key != "head_dim"}
# Far from 1, so that a factor that is lost, inverted or applied twice changes every logit.
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "granite divides": lambda: GraniteConfig(**SHAPE, logits_scaling=8.0),
    "cohere multiplies": lambda: CohereConfig(**SHAPE, logit_scale=0.0625),
    "cohere2 multiplies": lambda: Cohere2Config(**SHAPE, logit_scale=0.25),
    "gemma2 caps": lambda: Gemma2Config(
        **COMMON, final_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma2 without a cap": lambda: Gemma2Config(
        **COMMON, final_logit_softcapping=None, query_pre_attn_scalar=8
    ),
    "llama leaves alone": lambda: LlamaConfig(**COMMON),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_gives_the_models_own_logits(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    model = model.double().eval()
    ids = torch.randint(3, VOCABULARY, (1, 9))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        head = Model.policy(model).vocabulary_head()
        assert logits.std() > 0.05
        torch.testing.assert_close(full_logits(hidden, head), logits, rtol=1e-5, atol=1e-6)
        targets = ids[0].roll(-1)
        logp = token_stats(hidden=hidden, head=head, targets=targets).logp
    want = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(logp, want, rtol=1e-5, atol=1e-6)
