"""Policy prompts: from the recipe's section to encoded prompts, and which of them come next."""

from palate.data.prompts.curriculum import Curriculum
from palate.data.prompts.draws import PromptDraws
from palate.data.prompts.read import read_prompts
from palate.data.prompts.schema import PolicyPrompt, PolicyPrompts, prompts_digest
from palate.data.prompts.stream import PromptStream, prompt_draws

__all__ = [
    "Curriculum",
    "PolicyPrompt",
    "PolicyPrompts",
    "PromptDraws",
    "PromptStream",
    "prompt_draws",
    "prompts_digest",
    "read_prompts",
]
