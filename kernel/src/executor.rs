//! The executor: runs all tasks on one CPU, and sleeps in the hypervisor when none can run.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use futures_util::stream::{FuturesUnordered, Stream};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The executor's view of the machine.
pub trait Platform {
    /// Handles events and timers, which wake tasks. Returns whether more may be pending.
    fn dispatch(&self) -> bool;

    /// Sleeps until an event or timer is pending. Returns at once if one is already, or if
    /// `is_awake` returns true. An event between that check and the sleep must end the sleep.
    fn sleep(&self, is_awake: &dyn Fn() -> bool);
}

/// Starts tasks. Clones start tasks of the same group.
#[derive(Clone, Default)]
pub struct Spawner {
    new: Rc<RefCell<Vec<Task>>>,
}

impl Spawner {
    /// Starts a task. It runs until it ends or its group is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // No wake is needed: the executor looks here after each round.
        self.new.borrow_mut().push(Box::pin(task));
    }
}

/// The tasks of one [`Spawner`]. Dropping the group drops its tasks.
#[derive(Default)]
pub struct Tasks {
    spawner: Spawner,
    running: FuturesUnordered<Task>,
}

impl Tasks {
    /// Returns the group's spawner.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Polls the woken and the new tasks.
    fn poll(&mut self, context: &mut Context) {
        self.running.extend(self.spawner.new.take());
        // Each turn polls until a task ends. The loop ends when no further one does.
        while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(context) {}
    }

    fn has_new(&self) -> bool {
        !self.spawner.new.borrow().is_empty()
    }
}

/// Whether a task was woken.
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

/// Runs groups of tasks until `until` ends, and returns its result.
///
/// An image starts tasks by [`System::spawn`](crate::System::spawn). This is for another machine:
///
/// ```no_run
/// use kernel::executor::{Platform, Tasks, run};
///
/// /// A machine without events: it never sleeps.
/// struct Busy;
///
/// impl Platform for Busy {
///     fn dispatch(&self) -> bool {
///         true
///     }
///
///     fn sleep(&self, _: &dyn Fn() -> bool) {}
/// }
///
/// let mut tasks = Tasks::default();
/// tasks.spawner().spawn(async { log::info!("a task") });
/// run(&Busy, &mut [&mut tasks], async { log::info!("the end") });
/// ```
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

    /// A machine on which each sleep ends with one task's event.
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
    fn the_machine_sleeps_until_a_tasks_event() {
        let fake = Fake::default();
        run(&fake, &mut [], async {
            fake.event().await;
            fake.event().await;
        });
        assert_eq!(fake.sleeps.get(), 2);
    }

    #[test]
    fn new_tasks_run_before_the_next_sleep() {
        let fake = Fake::default();
        let mut tasks = Tasks::default();
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
        let mut tasks = Tasks::default();
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
