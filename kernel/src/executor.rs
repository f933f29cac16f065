//! The executor: one CPU, many futures, and sleep in the hypervisor when none can go on.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use futures_util::stream::{FuturesUnordered, Stream};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What the executor needs of the machine.
pub trait Platform {
    /// Wakes the tasks that events and timers are meant for. Returns whether there may be more.
    fn dispatch(&self) -> bool;

    /// Waits until there is something to dispatch, unless there is already or `is_awake` says so.
    /// It must not miss a thing that happens between the question and the sleep.
    fn sleep(&self, is_awake: &dyn Fn() -> bool);
}

/// A handle to start tasks with. Clones start tasks of the same group.
#[derive(Clone, Default)]
pub struct Spawner {
    new: Rc<RefCell<Vec<Task>>>,
}

impl Spawner {
    /// Starts a task, which runs beside all others until it ends or its group is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Needs no wake: the executor looks here after it has polled anything.
        self.new.borrow_mut().push(Box::pin(task));
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").field("new", &self.new.borrow().len()).finish()
    }
}

/// Tasks that were started through one [`Spawner`]. Dropping the group drops its tasks.
#[derive(Default)]
pub struct Tasks {
    spawner: Spawner,
    running: FuturesUnordered<Task>,
}

impl Tasks {
    /// A group without tasks.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// The handle to start tasks with.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Polls those tasks that were woken, and those that are new.
    fn poll(&mut self, context: &mut Context) {
        self.running.extend(self.spawner.new.take());
        // Tasks that end are many only if many were started.
        while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(context) {}
    }

    fn has_new(&self) -> bool {
        !self.spawner.new.borrow().is_empty()
    }
}

/// Whether some task can go on.
#[derive(Default)]
struct Awake(AtomicBool);

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs groups of tasks until `until` ends.
pub fn run<T>(
    platform: &impl Platform,
    groups: &mut [&mut Tasks],
    until: impl Future<Output = T>,
) -> T {
    let awake = Arc::new(Awake(AtomicBool::new(true)));
    let waker = Waker::from(awake.clone());
    let mut context = Context::from_waker(&waker);
    let mut until = core::pin::pin!(until);
    loop {
        let more = platform.dispatch();
        if awake.0.swap(false, Ordering::Acquire) {
            for group in groups.iter_mut() {
                group.poll(&mut context);
            }
            if let Poll::Ready(result) = until.as_mut().poll(&mut context) {
                return result;
            }
            if groups.iter().any(|group| group.has_new()) {
                awake.0.store(true, Ordering::Relaxed);
            }
        } else if !more {
            platform.sleep(&|| awake.0.load(Ordering::Acquire));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use core::future::poll_fn;
    use futures_util::future::pending;

    /// A machine whose every sleep ends with one task's event.
    #[derive(Default)]
    struct Fake {
        waiting: RefCell<Vec<(Waker, Rc<Cell<bool>>)>>,
        due: Cell<bool>,
        sleeps: Cell<u32>,
    }

    impl Fake {
        async fn event(&self) {
            let (happened, mut asked) = (Rc::new(Cell::new(false)), false);
            poll_fn(|context| {
                if happened.get() {
                    return Poll::Ready(());
                }
                if !asked {
                    asked = true;
                    self.waiting.borrow_mut().push((context.waker().clone(), happened.clone()));
                }
                Poll::Pending
            })
            .await;
        }
    }

    impl Platform for Fake {
        fn dispatch(&self) -> bool {
            if self.due.take() {
                let (waker, happened) = self.waiting.borrow_mut().remove(0);
                happened.set(true);
                waker.wake();
            }
            false
        }

        fn sleep(&self, is_awake: &dyn Fn() -> bool) {
            assert!(!is_awake() && !self.waiting.borrow().is_empty(), "sleeps for ever");
            self.sleeps.set(self.sleeps.get() + 1);
            self.due.set(true);
        }
    }

    #[test]
    fn a_task_sleeps_until_its_event_comes() {
        let fake = Fake::default();
        run(&fake, &mut [], async {
            fake.event().await;
            fake.event().await;
        });
        assert_eq!(fake.sleeps.get(), 2);
    }

    #[test]
    fn tasks_start_tasks_without_a_sleep_in_between() {
        let fake = Fake::default();
        let mut tasks = Tasks::new();
        let (spawner, depth) = (tasks.spawner(), Rc::new(Cell::new(0)));
        fn start(spawner: Spawner, depth: Rc<Cell<u32>>) {
            let again = spawner.clone();
            spawner.spawn(async move {
                depth.set(depth.get() + 1);
                if depth.get() < 100 {
                    start(again, depth);
                }
            });
        }
        start(spawner, depth.clone());
        run(&fake, &mut [&mut tasks], fake.event());
        assert_eq!((depth.get(), fake.sleeps.get()), (100, 1));
    }

    #[test]
    fn a_dropped_group_drops_its_tasks() {
        struct Noted(Rc<Cell<bool>>);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let (fake, dropped) = (Fake::default(), Rc::new(Cell::new(false)));
        let noted = Noted(dropped.clone());
        let mut tasks = Tasks::new();
        tasks.spawner().spawn(async move {
            let _noted = noted;
            pending::<()>().await;
        });
        run(&fake, &mut [&mut tasks], fake.event());
        assert!(!dropped.get());
        drop(tasks);
        assert!(dropped.get());
    }
}
