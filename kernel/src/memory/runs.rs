//! An allocator of consecutive numbers. Unlike an allocator of memory, it stores nothing in what it
//! allocates.

use alloc::vec::Vec;
use core::ops::Range;

/// The numbers of a range, of which runs are taken: first fit.
#[derive(Debug)]
pub struct Runs {
    all: Range<u64>,
    /// In order.
    taken: Vec<Range<u64>>,
}

impl Runs {
    /// The numbers of this range, all free.
    pub fn new(all: Range<u64>) -> Runs {
        Runs { all, taken: Vec::new() }
    }

    /// Takes `count` consecutive numbers, at least one, and returns the first. `None` if there are
    /// not that many, or memory is short.
    pub fn take(&mut self, count: u64) -> Option<u64> {
        self.taken.try_reserve(1).ok()?;
        let mut start = self.all.start;
        let next = self.taken.iter().position(|run| {
            let fits = run.start - start >= count;
            start = if fits { start } else { run.end };
            fits
        });
        let at = match next {
            Some(at) => at,
            None if self.all.end - start >= count => self.taken.len(),
            None => return None,
        };
        self.taken.insert(at, start..start + count);
        Some(start)
    }

    /// Gives back a run, by its first number.
    pub fn give_back(&mut self, start: u64) {
        let at = self.taken.binary_search_by_key(&start, |run| run.start);
        self.taken.remove(at.expect("the run was taken here"));
    }

    /// The number of numbers that are taken.
    pub fn taken(&self) -> u64 {
        self.taken.iter().map(|run| run.end - run.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hole_that_is_large_enough_is_taken() {
        let mut runs = Runs::new(100..110);
        assert_eq!([3, 2, 4].map(|count| runs.take(count)), [Some(100), Some(103), Some(105)]);
        assert_eq!(runs.take(2), None, "one is left");
        runs.give_back(100);
        runs.give_back(105);
        assert_eq!(runs.taken(), 2);
        assert_eq!([4, 1, 2].map(|count| runs.take(count)), [Some(105), Some(100), Some(101)]);
        assert_eq!([1, 1].map(|count| runs.take(count)), [Some(109), None]);
        assert_eq!(runs.taken(), 10);
    }

    #[test]
    fn what_was_given_back_is_one_run_again() {
        let mut runs = Runs::new(7..1031);
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
            let starts = [1, 513, 510].map(|count| runs.take(count).unwrap());
            assert_eq!(starts, [7, 8, 521]);
            order.into_iter().for_each(|n| runs.give_back(starts[n]));
            assert_eq!(runs.take(1024), Some(7));
            runs.give_back(7);
        }
        assert_eq!(runs.take(1025), None);
        assert_eq!(runs.take(u64::MAX), None);
    }

    #[test]
    #[should_panic(expected = "the run was taken here")]
    fn giving_back_a_run_twice_is_noticed() {
        let mut runs = Runs::new(0..10);
        let start = runs.take(3).unwrap();
        runs.give_back(start);
        runs.give_back(start);
    }
}
