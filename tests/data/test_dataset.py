import numpy as np
import pytest

from minidl.data import ArrayDataset


def some_images(count=6):
    return np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)


def some_labels(count=6):
    return np.arange(count, dtype=np.int64) % 3


def test_indices_give_images_and_labels_in_their_order():
    dataset = ArrayDataset(some_images(), some_labels())
    images, labels = dataset[np.array([4, 0, 4])]
    np.testing.assert_array_equal(images, some_images()[[4, 0, 4]])
    np.testing.assert_array_equal(labels, [1, 0, 1])


def test_its_length_is_the_number_of_images():
    assert len(ArrayDataset(some_images(5), some_labels(5))) == 5


def test_an_index_array_copies_so_that_a_transform_may_write():
    dataset = ArrayDataset(some_images(), some_labels())
    images, _ = dataset[np.array([0, 1])]
    assert not np.shares_memory(images, dataset.images)


def test_a_subset_by_slice_shares_memory_and_keeps_the_class_names():
    dataset = ArrayDataset(some_images(), some_labels(), ("a", "b", "c"))
    holdout = dataset.subset(slice(4, None))
    assert len(holdout) == 2
    assert holdout.classes == ("a", "b", "c")
    assert np.shares_memory(holdout.images, dataset.images)
    np.testing.assert_array_equal(holdout.labels, dataset.labels[4:])


def test_a_subset_by_indices_holds_exactly_those():
    subset = ArrayDataset(some_images(), some_labels()).subset(np.array([5, 2]))
    np.testing.assert_array_equal(subset.images, some_images()[[5, 2]])
    np.testing.assert_array_equal(subset.labels, some_labels()[[5, 2]])


def test_on_a_device_the_images_are_there_and_the_labels_at_hand(device, to_device, to_host):
    dataset = ArrayDataset(some_images(), some_labels(), ("a", "b", "c")).to(device)
    assert type(dataset.images) is type(to_device(some_images()))
    assert (len(dataset), dataset.classes) == (6, ("a", "b", "c"))
    images, labels = dataset[np.array([4, 0])]
    np.testing.assert_array_equal(to_host(images), some_images()[[4, 0]], strict=True)
    np.testing.assert_array_equal(labels, [1, 0])


def test_as_many_labels_as_images_are_required():
    with pytest.raises(ValueError, match=r"expected one label per image, got labels \(5,\) for 6 images"):
        ArrayDataset(some_images(6), some_labels(5))


def test_labels_as_a_column_are_an_error():
    with pytest.raises(ValueError, match=r"got labels \(6, 1\) for 6 images"):
        ArrayDataset(some_images(6), some_labels(6)[:, None])


def test_flat_images_are_an_error():
    with pytest.raises(ValueError, match=r"images must be \(N, H, W, C\), got shape \(6, 12\)"):
        ArrayDataset(some_images(6).reshape(6, 12), some_labels(6))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64])
def test_labels_of_another_type_are_an_error_with_the_remedy(dtype):
    with pytest.raises(ValueError, match=r"labels must be int64, got .*astype\(np.int64\)"):
        ArrayDataset(some_images(), some_labels().astype(dtype))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_without_a_class_name_is_an_error(wrong):
    labels = some_labels()
    labels[4] = wrong
    with pytest.raises(ValueError, match=rf"labels must be in 0\.\.2, one per class, got {wrong}"):
        ArrayDataset(some_images(), labels, ("a", "b", "c"))
