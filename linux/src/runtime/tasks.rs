//! The tasks of a thread, and the order in which those that were woken run.
//!
//! Each task has an owner, whose [`Turn`] counts the work that was done for it. Of the tasks that
//! were woken, the one runs first for whose owner the least was done (start-time fair queueing). An
//! owner that was idle has saved nothing up: it continues from where the others are.

use super::reactor::Interrupt;
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, abortable};
use slab::Slab;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use xen::{Flag, Turn};

/// The work of running a task that finds nothing to do.
const RUN: usize = 4 << 10;

/// The work after which the loop looks for new events.
const PASS: u64 = 64 << 10;

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were started, with their owners.
type NewTasks = Vec<(Rc<Turn>, Job)>;

/// What was woken, from any thread.
pub(super) struct Woken {
    /// Whether the future that the loop runs was.
    main: AtomicBool,
    /// The numbers of the tasks.
    tasks: Mutex<Vec<usize>>,
    /// Whether the loop waits, or is about to.
    waits: AtomicBool,
    interrupt: Arc<Interrupt>,
}

impl Woken {
    pub(super) fn new(interrupt: Arc<Interrupt>) -> Arc<Self> {
        let (main, waits) = (AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(Woken { main, tasks: Mutex::default(), waits, interrupt })
    }

    /// Whether the loop's own future was woken. It must run then.
    pub(super) fn take_main(&self) -> bool {
        self.main.swap(false, Ordering::Acquire)
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<usize>> {
        // No code panics while it holds the lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `wait` with whether nothing was woken. What is woken later interrupts it.
    pub(super) fn while_waiting<T>(&self, wait: impl FnOnce(bool) -> T) -> T {
        self.waits.store(true, Ordering::SeqCst);
        let result = wait(!self.main.load(Ordering::SeqCst) && self.tasks().is_empty());
        self.waits.store(false, Ordering::Relaxed);
        result
    }

    fn interrupt(&self) {
        // Only another thread finds the loop waiting.
        if self.waits.swap(false, Ordering::SeqCst) {
            self.interrupt.send();
        }
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.main.store(true, Ordering::SeqCst);
        self.interrupt();
    }
}

/// Wakes a task.
struct TaskWaker {
    number: usize,
    /// Whether it was woken and has not run since.
    is_woken: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.woken.tasks().push(self.number);
            self.woken.interrupt();
        }
    }
}

struct Entry {
    job: Job,
    turn: Rc<Turn>,
    own: Arc<TaskWaker>,
    waker: Waker,
    /// The number of changes between owners when it last ran.
    ran: u64,
}

/// The tasks.
pub(super) struct Tasks {
    spawner: Spawner,
    woken: Arc<Woken>,
    all: Slab<Entry>,
    /// Those to run: the work of their owners, a number that grows, and their own numbers.
    ready: BinaryHeap<Reverse<(u64, u64, usize)>>,
    last: u64,
    /// The work of the owner of the task that ran last, when its turn came.
    present: u64,
    /// The owner of the task that ran last, and how often that was another one than before.
    owner: Option<Rc<Turn>>,
    changes: u64,
}

impl Tasks {
    pub(super) fn new(woken: Arc<Woken>) -> Self {
        Tasks {
            spawner: Spawner::default(),
            woken,
            all: Slab::new(),
            ready: BinaryHeap::new(),
            last: 0,
            present: 0,
            owner: None,
            changes: 0,
        }
    }

    pub(super) fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Runs those that were woken, until it is time to look for new events. Most that wake each
    /// other run in one pass. Returns whether some have yet to run.
    pub(super) fn run(&mut self) -> bool {
        let mut work = 0;
        while work < PASS {
            let Some(number) = self.next() else { return false };
            work += self.run_one(number);
        }
        !self.ready.is_empty() || !self.woken.tasks().is_empty()
    }

    /// The next one to run.
    fn next(&mut self) -> Option<usize> {
        for (turn, job) in self.spawner.new.take() {
            let place = self.all.vacant_entry();
            let own = Arc::new(TaskWaker {
                number: place.key(),
                is_woken: AtomicBool::new(false),
                woken: self.woken.clone(),
            });
            let waker = Waker::from(own.clone());
            waker.wake_by_ref();
            place.insert(Entry { job, turn, own, waker, ran: self.changes });
        }
        for number in self.woken.tasks().drain(..) {
            // One that has ended may still be woken.
            if let Some(Entry { turn, .. }) = self.all.get(number) {
                turn.lift(self.present);
                self.last += 1;
                self.ready.push(Reverse((turn.work(), self.last, number)));
            }
        }
        while let Some(Reverse((work, order, number))) = self.ready.pop() {
            // One that was woken twice may have ended.
            let Some(Entry { turn, .. }) = self.all.get(number) else { continue };
            if turn.work() <= work {
                return Some(number);
            }
            // Another task of the same owner has worked meanwhile.
            self.ready.push(Reverse((turn.work(), order, number)));
        }
        None
    }

    /// Runs a task, and returns the work that was done.
    fn run_one(&mut self, number: usize) -> u64 {
        let Some(Entry { job, turn, own, waker, ran }) = self.all.get_mut(number) else { return 0 };
        if self.owner.as_ref().is_none_or(|owner| !Rc::ptr_eq(owner, turn)) {
            self.changes += 1;
            self.owner = Some(turn.clone());
        }
        turn.set_crowded(self.changes - *ran > 1);
        *ran = self.changes;
        let before = turn.work();
        self.present = self.present.max(before);
        turn.charge(RUN);
        own.is_woken.store(false, Ordering::Release);
        let ended = job.as_mut().poll(&mut Context::from_waker(waker)).is_ready();
        let work = turn.work() - before;
        if ended {
            self.all.remove(number);
        }
        work
    }
}

/// Starts tasks of a [`Runtime`](super::Runtime).
#[derive(Clone, Default)]
pub struct Spawner {
    new: Rc<RefCell<NewTasks>>,
}

impl Spawner {
    /// Starts a task that shares nobody's turn, from inside the runtime. A panic ends only this
    /// task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> Task {
        self.spawn_for(Rc::default(), task)
    }

    /// Starts a task of this owner.
    pub fn spawn_for(&self, turn: Rc<Turn>, task: impl Future<Output = ()> + 'static) -> Task {
        let ended = Rc::new(Flag::default());
        let (task, abort) = abortable(AssertUnwindSafe(task).catch_unwind());
        let ending = RaiseOnDrop(ended.clone());
        let job = async move {
            let _ending = ending;
            // The panic has printed its message.
            let _ = task.await;
        };
        self.new.borrow_mut().push((turn, Box::pin(job)));
        Task { ended, abort }
    }
}

/// A running task. It continues when this is dropped.
pub struct Task {
    ended: Rc<Flag>,
    abort: AbortHandle,
}

/// Raises a flag when it is dropped.
struct RaiseOnDrop(Rc<Flag>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

impl Task {
    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.ended.is_raised()
    }

    /// Waits until the task has ended.
    pub async fn finished(&self) {
        self.ended.raised().await;
    }

    /// Ends the task the next time that the loop runs it.
    pub fn abort(&self) {
        self.abort.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;
    use std::cell::Cell;
    use std::time::Duration;
    use xen::yield_now;

    /// A task that always has work of this size to do.
    async fn busy(turn: Rc<Turn>, work: usize, done: Rc<Cell<usize>>) {
        loop {
            turn.charge(work);
            done.set(done.get() + work);
            yield_now().await;
        }
    }

    /// Owners, each with tasks that work in pieces of these sizes. Returns how much each does until
    /// all have done `until`.
    fn work_until(until: usize, owners: &[&[usize]]) -> Vec<usize> {
        let mut runtime = Runtime::new().unwrap();
        let all = owners.iter().map(|pieces| {
            let (turn, done) = (Rc::<Turn>::default(), Rc::new(Cell::new(0)));
            for piece in *pieces {
                runtime.spawner().spawn_for(turn.clone(), busy(turn.clone(), *piece, done.clone()));
            }
            done
        });
        let all: Vec<_> = all.collect();
        runtime
            .block_on(async {
                while all.iter().map(|done| done.get()).sum::<usize>() < until {
                    yield_now().await;
                }
            })
            .unwrap();
        all.iter().map(|done| done.get()).collect()
    }

    #[test]
    fn owners_get_the_same_whatever_the_size_and_number_of_their_pieces() {
        let all = 400 << 20;
        let shares = work_until(all, &[&[1 << 20], &[64 << 10; 3], &[256 << 10], &[100 << 10; 20]]);
        for share in &shares {
            let part = *share as f64 / all as f64;
            assert!((0.2..0.3).contains(&part), "{shares:?}");
        }
    }

    #[test]
    fn a_pause_gives_no_advantage() {
        let mut runtime = Runtime::new().unwrap();
        let spawner = runtime.spawner().clone();
        let owners = [0; 2].map(|_| (Rc::<Turn>::default(), Rc::new(Cell::new(0))));
        let start = |(turn, done): &(Rc<Turn>, Rc<Cell<usize>>)| {
            spawner.spawn_for(turn.clone(), busy(turn.clone(), 1 << 20, done.clone()));
        };
        let [first, second] = &owners;
        runtime
            .block_on(async {
                start(first);
                while first.1.get() < 100 << 20 {
                    yield_now().await;
                }
                start(second);
                while second.1.get() < 10 << 20 {
                    yield_now().await;
                }
            })
            .unwrap();
        let meanwhile = first.1.get() - (100 << 20);
        assert!(meanwhile >= 8 << 20, "{meanwhile}");
    }

    #[test]
    fn only_an_owner_among_others_is_crowded() {
        let mut runtime = Runtime::new().unwrap();
        let spawner = runtime.spawner().clone();
        let (turn, done) = <(Rc<Turn>, Rc<Cell<usize>>)>::default();
        runtime
            .block_on(async {
                let some_runs = async || {
                    let before = done.get();
                    while done.get() < before + (10 << 20) {
                        yield_now().await;
                    }
                };
                // Another task of the same owner makes no crowd.
                for _ in 0..2 {
                    spawner.spawn_for(turn.clone(), busy(turn.clone(), 1 << 20, done.clone()));
                }
                some_runs().await;
                assert!(!turn.is_crowded());
                let other = spawner.spawn(async {
                    loop {
                        yield_now().await;
                    }
                });
                some_runs().await;
                assert!(turn.is_crowded());
                other.abort();
                other.finished().await;
                some_runs().await;
                assert!(!turn.is_crowded());
            })
            .unwrap();
    }

    #[test]
    fn a_task_is_woken_from_another_thread() {
        let mut runtime = Runtime::new().unwrap();
        let signal = Arc::new(xen::Signal::new());
        let (waited, mut looks) = (signal.clone(), 0);
        let task = runtime.spawner().spawn(async move {
            let second_look = || {
                looks += 1;
                (looks == 2).then_some(())
            };
            waited.until(xen::Side::Rx, second_look).await;
        });
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            signal.raise();
        });
        runtime.block_on(task.finished()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn what_a_runtime_has_not_finished_is_dropped_with_it() {
        let mut runtime = Runtime::new().unwrap();
        let witness = Rc::new(());
        let (held, reactor) = (witness.clone(), runtime.reactor().clone());
        runtime.spawner().spawn(async move {
            reactor.sleep(Duration::from_secs(1000)).await;
            drop(held);
        });
        runtime.block_on(yield_now()).unwrap();
        assert_eq!(Rc::strong_count(&witness), 2);
        drop(runtime);
        assert_eq!(Rc::strong_count(&witness), 1);
    }
}
