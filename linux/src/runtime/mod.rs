//! One thread's event loop: tasks, files and timers.
//!
//! The loop makes one system call of its own each time that it has nothing to do: the `epoll_wait`
//! that waits. It does not read the clock.

mod reactor;
mod tasks;
mod timers;

pub use reactor::{EventFlags, READABLE, Reactor, SOCKET, Watched};
pub use tasks::{Spawner, Task};

use self::tasks::{Tasks, Woken};
use futures_util::future::{Either, select};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// An event loop. It belongs to the thread that created it.
///
/// ```
/// use std::time::Duration;
/// use xen_linux::runtime::Runtime;
///
/// let mut runtime = Runtime::new()?;
/// let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
/// runtime.block_on(async move {
///     let task = spawner.spawn(async { log::info!("a task") });
///     reactor.sleep(Duration::from_millis(1)).await;
///     assert!(task.is_finished());
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Runtime {
    reactor: Reactor,
    woken: Arc<Woken>,
    tasks: Tasks,
}

impl Runtime {
    /// A loop without tasks.
    pub fn new() -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let woken = Woken::new(reactor.interrupt());
        Ok(Runtime { reactor, tasks: Tasks::new(woken.clone()), woken })
    }

    /// Watches files and waits.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Starts tasks.
    pub fn spawner(&self) -> &Spawner {
        self.tasks.spawner()
    }

    /// Runs all tasks until `future` ends. Fails if the kernel refuses to wait.
    pub fn block_on<T>(&mut self, future: impl Future<Output = T>) -> io::Result<T> {
        self.woken.wake_by_ref();
        let waker = Waker::from(self.woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if self.woken.take_main()
                && let Poll::Ready(result) = future.as_mut().poll(&mut cx)
            {
                return Ok(result);
            }
            let busy = self.tasks.run();
            if busy {
                // Linux lets a process that always has work run for milliseconds after another was
                // woken, which may be the client for whom it works.
                rustix::thread::sched_yield();
            }
            let reactor = &self.reactor;
            self.woken.while_waiting(|nothing| reactor.take_events(nothing && !busy))?;
            self.reactor.report_events()?;
        }
    }
}

/// The result of `future`, or `None` if it takes longer than `time`.
pub async fn timeout<T>(
    reactor: &Reactor,
    time: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(future), pin!(reactor.sleep(time))).await {
        Either::Left((result, _)) => Some(result),
        Either::Right(_) => None,
    }
}
