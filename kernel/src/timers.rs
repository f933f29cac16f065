//! The pending timers, by time and by task.
//!
//! Each task (each waker) has at most one entry, with the earliest time that it asked for. When
//! that time has come, the task is polled and schedules again if it still waits. So a task that
//! sets a new time limit for each byte it reads costs one look-up each time, adds no entries, and
//! is woken needlessly at most once per time limit.
//!
//! A task that ends leaves its entry, and the memory that the waker refers to, until the entry's
//! time: thousands on a server with short connections and long time limits. So all tasks are
//! woken early when there are twice as many entries as there were tasks: tasks that still wait
//! schedule again, and the entries of ended tasks are removed. This also happens occasionally when
//! an entry's time has come, so that memory is freed after a peak.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use core::mem::take;
use core::task::Waker;

/// Identifies a task: the waker's data and functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Task(usize, usize);

impl Task {
    fn of(waker: &Waker) -> Task {
        Task(waker.data().addr(), core::ptr::from_ref(waker.vtable()).addr())
    }
}

/// The number of entries that is never too large.
const FEW: usize = 64;

/// The waiting tasks. Times are in ticks of any unit.
#[derive(Debug)]
pub struct Timers {
    by_time: BTreeMap<(u64, Task), Waker>,
    by_task: BTreeMap<Task, u64>,
    /// The largest number of entries before all tasks are woken.
    limit: usize,
    /// Whether all tasks were woken, and `limit` is still to be set.
    is_swept: bool,
    /// When [`clear`](Timers::clear) last woke all tasks.
    cleared: u64,
}

impl Timers {
    /// No timers.
    pub const fn new() -> Timers {
        Timers {
            by_time: BTreeMap::new(),
            by_task: BTreeMap::new(),
            limit: FEW,
            is_swept: false,
            cleared: 0,
        }
    }

    /// Wakes `waker` at `time`, or earlier if it is already scheduled earlier.
    pub fn schedule(&mut self, time: u64, waker: &Waker) {
        // An entry keeps the waker's data alive, so its address identifies the task.
        let task = Task::of(waker);
        let waker = match self.by_task.entry(task) {
            Entry::Occupied(known) if *known.get() <= time => return,
            Entry::Occupied(mut known) => {
                let former = self.by_time.remove(&(known.insert(time), task));
                former.unwrap_or_else(|| waker.clone())
            }
            Entry::Vacant(place) => {
                place.insert(time);
                waker.clone()
            }
        };
        self.by_time.insert((time, task), waker);
    }

    /// If there are too many entries, removes all and returns their wakers. Called after woken
    /// tasks have run.
    pub fn sweep(&mut self) -> Option<impl Iterator<Item = Waker> + use<>> {
        if self.is_swept {
            self.is_swept = false;
            // At least half of the former limit, in case not all tasks have run yet.
            self.limit = (2 * self.by_time.len()).max(self.limit / 2).max(FEW);
        }
        (self.by_time.len() > self.limit).then(|| self.take_all())
    }

    /// Removes all entries and returns their wakers, unless that was done within the last
    /// `period`. Called when an entry's time has come.
    pub fn clear(&mut self, now: u64, period: u64) -> Option<impl Iterator<Item = Waker> + use<>> {
        let is_due = now.saturating_sub(self.cleared) >= period;
        is_due.then(|| {
            self.cleared = now;
            self.take_all()
        })
    }

    fn take_all(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.is_swept = true;
        self.by_task.clear();
        take(&mut self.by_time).into_values()
    }

    /// Removes a task whose time has come.
    pub fn pop(&mut self, now: u64) -> Option<Waker> {
        let first = self.by_time.first_entry().filter(|first| first.key().0 <= now)?;
        let ((_, task), waker) = first.remove_entry();
        self.by_task.remove(&task);
        Some(waker)
    }

    /// The earliest time.
    pub fn next(&self) -> Option<u64> {
        self.by_time.first_key_value().map(|((time, _), _)| *time)
    }

    /// The number of waiting tasks.
    pub fn waiting(&self) -> usize {
        self.by_time.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use alloc::task::Wake;
    use core::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tasks<const N: usize>() -> [(Arc<Count>, Waker); N] {
        core::array::from_fn(|_| {
            let count = Arc::new(Count::default());
            (count.clone(), Waker::from(count))
        })
    }

    fn wakes(task: &(Arc<Count>, Waker)) -> u32 {
        task.0.0.load(Ordering::Relaxed)
    }

    fn expire(timers: &mut Timers, now: u64) {
        while let Some(waker) = timers.pop(now) {
            waker.wake();
        }
    }

    #[test]
    fn tasks_are_woken_at_their_time_and_not_before() {
        let [first, second, third] = tasks();
        let mut timers = Timers::new();
        timers.schedule(30, &third.1);
        timers.schedule(10, &first.1);
        timers.schedule(20, &second.1);
        assert_eq!(timers.next(), Some(10));
        expire(&mut timers, 9);
        assert_eq!([&first, &second, &third].map(wakes), [0, 0, 0]);
        expire(&mut timers, 20);
        assert_eq!([&first, &second, &third].map(wakes), [1, 1, 0]);
        assert_eq!((timers.next(), timers.waiting()), (Some(30), 1));
    }

    #[test]
    fn tasks_of_the_same_time_are_all_woken() {
        let [first, second] = tasks();
        let mut timers = Timers::new();
        timers.schedule(10, &first.1);
        timers.schedule(10, &second.1);
        expire(&mut timers, 10);
        assert_eq!([&first, &second].map(wakes), [1, 1]);
    }

    #[test]
    fn a_task_has_one_entry_with_its_earliest_time() {
        let [task] = tasks();
        let mut timers = Timers::new();
        for time in [50, 70, 40, 60, 40] {
            timers.schedule(time, &task.1.clone());
        }
        assert_eq!((timers.next(), timers.waiting()), (Some(40), 1));
        expire(&mut timers, 100);
        assert_eq!(wakes(&task), 1);
        assert_eq!((timers.next(), timers.waiting()), (None, 0));
    }

    #[test]
    fn clearing_removes_ended_tasks_at_most_once_in_a_period() {
        let [waiting] = tasks();
        let mut timers = Timers::new();
        for [ended] in (0..50).map(|_| tasks()) {
            timers.schedule(1_000_000, &ended.1);
        }
        timers.schedule(20, &waiting.1);
        timers.clear(20, 10).into_iter().flatten().for_each(Waker::wake);
        assert_eq!((wakes(&waiting), timers.waiting()), (1, 0));
        timers.schedule(25, &waiting.1);
        assert!(timers.clear(25, 10).is_none());
        assert_eq!(timers.waiting(), 1);
    }

    #[test]
    fn entries_of_ended_tasks_are_removed() {
        let living: Vec<_> = (0..1000).map(|_| tasks::<1>()).collect();
        let mut timers = Timers::new();
        let mut most = 0;
        for round in 0..100 {
            for [ended] in (0..1000).map(|_| tasks()) {
                timers.schedule(1_000_000, &ended.1);
            }
            if let Some(wakers) = timers.sweep() {
                wakers.for_each(Waker::wake);
            }
            // Woken tasks that still exist schedule again.
            for [task] in &living {
                if task.0.0.swap(0, Ordering::Relaxed) > 0 || round == 0 {
                    timers.schedule(1_000_000, &task.1);
                }
            }
            most = most.max(timers.waiting());
        }
        assert!(most <= 4000, "{most}");
        expire(&mut timers, 1_000_000);
        assert!(living.iter().all(|[task]| wakes(task) == 1));
    }

    #[test]
    fn a_few_timers_are_never_swept() {
        let tasks: Vec<_> = (0..FEW).map(|_| tasks::<1>()).collect();
        let mut timers = Timers::new();
        tasks.iter().for_each(|[task]| timers.schedule(5, &task.1));
        assert!(timers.sweep().is_none());
        assert_eq!(timers.waiting(), FEW);
    }

    #[test]
    fn ten_thousand_timers_leave_no_entries() {
        let tasks: Vec<_> = (0..10_000).map(|_| tasks::<1>()).collect();
        let mut timers = Timers::new();
        for (n, [task]) in tasks.iter().enumerate() {
            timers.schedule((n as u64 * 7919) % 10_000, &task.1);
        }
        for now in 0..10_000 {
            expire(&mut timers, now);
            assert_eq!(timers.waiting() as u64, 9_999 - now);
        }
        assert!(tasks.iter().all(|[task]| wakes(task) == 1 && Arc::strong_count(&task.0) == 2));
    }
}
