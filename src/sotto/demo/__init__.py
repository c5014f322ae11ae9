"""The bundled recogniser of connected digits, its clips and its recipe."""

from pathlib import Path

DEMO_RECIPE = Path(__file__).parent / "recipe.yaml"
DEMO_CLIPS = Path(__file__).parent / "clips" / "test"
