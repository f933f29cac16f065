//! One thread's event loop: tasks, files and timers.
//!
//! The loop makes one system call of its own each time that it has nothing to do: the `epoll_wait`
//! that waits. It does not read the clock.

mod reactor;
mod timers;

pub use reactor::{EventFlags, READABLE, Reactor, SOCKET, Watched};

use self::reactor::Interrupt;
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Either, abortable, select};
use futures_util::stream::{FuturesUnordered, Stream};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use xen::Flag;

/// How often woken tasks run before the files are looked at again. Tasks that wake each other, or
/// themselves, need several rounds.
const ROUNDS: usize = 4;

type Job = Pin<Box<dyn Future<Output = ()>>>;

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
    spawner: Spawner,
    tasks: FuturesUnordered<Job>,
}

impl Runtime {
    /// A loop without tasks.
    pub fn new() -> io::Result<Self> {
        let (reactor, spawner) = (Reactor::new()?, Spawner::default());
        Ok(Runtime { reactor, spawner, tasks: FuturesUnordered::new() })
    }

    /// Watches files and waits.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Starts tasks.
    pub fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Runs all tasks until `future` ends. Fails if the kernel refuses to wait.
    pub fn block_on<T>(&mut self, future: impl Future<Output = T>) -> io::Result<T> {
        let awake = Arc::new(Awake {
            is: AtomicBool::new(true),
            waits: AtomicBool::new(false),
            interrupt: self.reactor.interrupt(),
        });
        let waker = Waker::from(awake.clone());
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            for _ in 0..ROUNDS {
                if !awake.is.swap(false, Ordering::Acquire) {
                    break;
                }
                if let Poll::Ready(result) = future.as_mut().poll(&mut cx) {
                    return Ok(result);
                }
                self.run_tasks(&mut cx);
            }
            awake.waits.store(true, Ordering::SeqCst);
            let taken = self.reactor.take_events(!awake.is.load(Ordering::SeqCst));
            awake.waits.store(false, Ordering::Relaxed);
            taken.and_then(|()| self.reactor.report_events())?;
        }
    }

    fn run_tasks(&mut self, cx: &mut Context<'_>) {
        loop {
            self.tasks.extend(self.spawner.new.take());
            while let Poll::Ready(Some(())) = Pin::new(&mut self.tasks).poll_next(cx) {}
            if self.spawner.new.borrow().is_empty() {
                return;
            }
        }
    }
}

/// Whether a task was woken.
struct Awake {
    is: AtomicBool,
    /// Whether the loop waits, or is about to.
    waits: AtomicBool,
    interrupt: Arc<Interrupt>,
}

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is.store(true, Ordering::SeqCst);
        // Only another thread finds the loop waiting.
        if self.waits.swap(false, Ordering::SeqCst) {
            self.interrupt.send();
        }
    }
}

/// Starts tasks of a [`Runtime`].
#[derive(Clone, Default)]
pub struct Spawner {
    new: Rc<RefCell<Vec<Job>>>,
}

impl Spawner {
    /// Starts a task, from inside the runtime. A panic ends only this task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> Task {
        let ended = Rc::new(Flag::default());
        let (task, abort) = abortable(AssertUnwindSafe(task).catch_unwind());
        let ending = RaiseOnDrop(ended.clone());
        self.new.borrow_mut().push(Box::pin(async move {
            let _ending = ending;
            // The panic has printed its message.
            let _ = task.await;
        }));
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
