"""What a source has beside its pictures comes with each batch where it is asked for, and changes as the picture does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hwaga.data import DataConfig, open_data
from hwaga.errors import InputError


@pytest.fixture(scope="module")
def drawn():
    """Digits whose lines are the negatives of their pictures."""
    data = open_data(DataConfig(source="digits", size=8, flip=True))
    return replace(data, lines=lambda: 255 - np.asarray(data.store))


def test_line_art_is_beside_each_picture_and_mirrored_with_it(drawn):
    data = drawn.with_extras(("line_art",))
    for epochs in (None, np.arange(12)):
        batch = data.batch(np.arange(12), epochs)
        lines = batch.extra["line_art"]
        assert lines.shape == batch.image.shape and 0 <= lines.min() and lines.max() <= 1
        assert torch.allclose(lines, 1 - (batch.image / 2 + 0.5), atol=1e-6)
    assert "line_art" not in drawn.batch([0]).extra


def test_it_is_part_of_what_training_sees(drawn):
    assert drawn.with_extras(("line_art",)).fingerprint != drawn.fingerprint
    assert drawn.with_extras(()) is drawn


def test_a_source_without_lines_says_what_to_take_instead():
    with pytest.raises(InputError, match="only the source openmoji has it; take a control kind"):
        open_data(DataConfig(source="digits", size=8)).with_extras(("line_art",))
    with pytest.raises(ValueError, match="line_art"):
        open_data(DataConfig(source="digits", size=8)).with_extras(("depth",))
