"""OpenAI's APIs, as a server speaks them; one module for each path.

Source: the OpenAI API reference. Unknown fields are ignored, as OpenAI does; a known one that we cannot honour is
refused by name: never silently dropped.
"""

from covey.dialects.openai_chat import parse_chat
from covey.dialects.openai_completions import parse_completion
from covey.dialects.openai_embeddings import parse_embedding
from covey.dialects.openai_models import model_list, model_one
from covey.dialects.openai_responses import parse_response

__all__ = ["model_list", "model_one", "parse_chat", "parse_completion", "parse_embedding", "parse_response"]
