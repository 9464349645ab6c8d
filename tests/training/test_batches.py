import numpy as np

from neat_bench.training.batches import LengthBucketedBatches

LENGTHS = np.random.default_rng(0).integers(3, 60, size=1003).tolist()


def batches(accumulation=1, batch_size=32, seed=0, epoch=0):
    sampler = LengthBucketedBatches(LENGTHS, batch_size, accumulation, seed)
    sampler.start_epoch(epoch)
    return sampler


def test_every_row_once_an_epoch_and_the_length_is_true():
    for accumulation in (1, 3):
        sampler = batches(accumulation)
        found = list(sampler)
        assert sorted(row for batch in found for row in batch) == list(range(len(LENGTHS)))
        assert len(found) == len(sampler)
        assert len(list(sampler.step_batches())) == sampler.steps


def test_the_order_depends_on_seed_and_epoch_alone():
    assert list(batches()) == list(batches())
    assert list(batches()) != list(batches(seed=1))
    assert list(batches()) != list(batches(epoch=1))
    later = batches()
    list(later)
    later.start_epoch(1)
    assert list(later) == list(batches(epoch=1))


def test_accumulation_changes_neither_rows_nor_order_of_the_steps():
    assert list(batches(4, 8).step_batches()) == list(batches(1, 32).step_batches())


def test_bucketing_wastes_little_padding():
    def padded(found):
        return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in found) / sum(LENGTHS)

    shuffled = np.random.default_rng(1).permutation(len(LENGTHS))
    random_batches = [shuffled[at : at + 32].tolist() for at in range(0, len(LENGTHS), 32)]
    assert padded(list(batches())) < 1.1 < 1.6 < padded(random_batches)


def test_steps_are_not_sorted_by_length():
    means = [np.mean([LENGTHS[row] for row in step]) for step in batches().step_batches()]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5
