import grain
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.data.source import Source, held, in_memory, num_examples

SIZE = 2500


class Examples:
    """Squares, of which is noted what is read."""

    def __init__(self, size=SIZE):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        assert isinstance(number, int)
        self.read.append(number)
        return {"x": np.full(3, number**2), "label": number % 7, "name": "not asked for"}


class Several(Examples):
    def __getitems__(self, numbers):
        return [self[number] for number in numbers[::-1]][::-1]


def convert(example):
    return {"x": example["x"].astype(np.float32), "label": np.int32(example["label"])}


@pytest.mark.parametrize("kind", [Examples, Several])
def test_examples_are_read_into_arrays_when_asked_for(kind):
    examples = kind()
    source = Source(examples, convert)
    assert len(source) == num_examples(source) == SIZE and not examples.read
    for ids in (np.array([7, 2, 7, 2499]), jnp.asarray([7, 2, 7, 2499]), slice(3, 9, 2)):
        batch, numbers = source[ids], np.arange(SIZE)[ids]
        np.testing.assert_array_equal(batch["x"], numbers[:, None] ** 2 * np.ones(3))
        np.testing.assert_array_equal(batch["label"], numbers % 7)
        assert batch["x"].dtype == np.float32 and batch["label"].dtype == np.int32
    assert sorted(examples.read) == sorted([7, 2, 7, 2499] * 2 + [3, 5, 7])


def test_what_is_held_is_evenly_spaced_and_read_once():
    examples = Examples()
    source = Source(examples, convert)
    np.testing.assert_array_equal(held(source)["label"], np.arange(0, 2500, 2.5).astype(int) % 7)
    assert held(source) is held(source) and len(examples.read) == 1000
    arrays = {"x": np.ones(3)}
    assert held(arrays) is arrays and in_memory(arrays) and not in_memory(source)
    assert len(held(Source(Examples(5), convert))["x"]) == 5


@pytest.mark.parametrize("number", [-1, SIZE])
def test_an_id_that_is_none_is_refused(number):
    with pytest.raises(IndexError, match=f"no example {number} in a source of 2500"):
        Source(Examples(), convert)[np.array([3, number])]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        Source([])


@pytest.mark.parametrize("kind", [Examples, Several])
def test_the_example_that_cannot_be_read_is_named(kind):
    class Broken(kind):
        def __getitem__(self, number):
            if number == 41:
                raise OSError("checksum")
            return super().__getitem__(number)

    with pytest.raises(ValueError, match="example 41 of the source cannot be read: OSError: check"):
        Source(Broken(), convert)[np.array([3, 41, 5])]


def test_an_example_that_a_filter_left_out_is_named_with_the_remedy():
    dataset = grain.MapDataset.source(np.arange(10)).filter(lambda number: number % 3 > 0)
    message = r"example 3 of the source cannot be read: .* None, as where a .* was filtered; make"
    with pytest.raises(ValueError, match=message):
        Source(dataset)[np.array([1, 3])]
    kept = [i for i in range(len(dataset)) if dataset[i] is not None]
    left = Source(grain.MapDataset.source(kept).map(lambda i: dataset[i]))  # as the message says
    np.testing.assert_array_equal(left[np.arange(len(left))], [1, 2, 4, 5, 7, 8])
    with pytest.raises(ValueError, match=r"example 0 of the source cannot be read: .* None"):
        Source(Examples(), lambda example: None)[np.array([0])]


def test_strings_among_the_examples_are_refused():
    with pytest.raises(ValueError, match=r"of the source: \['name'\] holds strings.*`convert`"):
        Source(Examples())[np.array([0, 1])]


def test_examples_of_different_shapes_are_refused():
    source = Source([np.ones(3), np.ones(4)])
    with pytest.raises(ValueError, match=r"differ in shape .* have `convert` make them alike"):
        source[np.array([0, 1])]
