"""The model card that stands beside saved weights."""

from __future__ import annotations

from sotto.checkpoint import Recognizer, config_on_disk
from sotto.methods import methods
from sotto.metrics.cost import count_parameters
from sotto.recipe import Recipe, recipe_as_yaml


def model_card(recipe: Recipe, recognizer: Recognizer, notes: list[str]) -> str:
    """Markdown with the metadata that hubs read: the base, what was done, how to load it, and its recipe."""
    parameters = count_parameters(recognizer.model)
    language = f"language: {recipe.language}\n" if recipe.language else ""
    steps = ", then ".join(methods.name_of(step).replace("_", " ") for step in recipe.steps)
    done = "\n".join(f"- {note}" for note in notes)
    opening = "import sotto  # registers the shapes of this checkpoint\n" if needs_sotto(recognizer) else ""
    return f"""---
{language}base_model: {recipe.base}
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [sotto, compression]
---

# {recipe.base}, compressed with Sotto

Steps: {steps}. {parameters.total:,} parameters, of which the encoder has {parameters.encoder:,}.

{done}

```python
{opening}from transformers import pipeline

recognizer = pipeline("automatic-speech-recognition", model="path/to/this/folder")
```

The word error rate before and after, with its definition, is in the report of the run that made this checkpoint.

## Recipe

```yaml
{recipe_as_yaml(recipe)}```
"""


def needs_sotto(recognizer: Recognizer) -> bool:
    """Whether plain transformers cannot open the checkpoint."""
    return str(config_on_disk(recognizer.model).model_type).startswith("sotto_")
