//! Tasks that wait for a condition, first come first served.

use alloc::collections::VecDeque;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};

/// The tasks that wait for one condition. For a single thread.
///
/// ```
/// # use std::{pin::pin, cell::Cell};
/// # use futures_util::FutureExt;
/// use xen::WaitList;
///
/// let (list, free) = (WaitList::default(), Cell::new(0));
/// let take = || (free.get() > 0).then(|| free.set(free.get() - 1));
/// let mut taken = pin!(list.until(take));
/// assert_eq!(taken.as_mut().now_or_never(), None);
/// free.set(1);
/// list.wake_one();
/// assert_eq!(taken.now_or_never(), Some(()));
/// ```
#[derive(Debug, Default)]
pub struct WaitList {
    /// Sorted by the keys. Most waiters come at the end and leave from the start.
    wakers: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// A waiter's place in the list, removed when the wait ends or is cancelled.
struct Place<'a> {
    list: &'a WaitList,
    key: u64,
    waits: bool,
}

impl WaitList {
    /// Waits until `ready` gives a value. It is called at once and after each wake.
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        let key = self.next.get();
        self.next.set(key + 1);
        let mut place = Place { list: self, key, waits: false };
        poll_fn(|cx| {
            let value = ready();
            place.waits = value.is_none();
            if place.waits {
                self.insert(key, cx.waker());
            } else {
                self.remove(key);
            }
            value.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn insert(&self, key: u64, waker: &Waker) {
        let mut wakers = self.wakers.borrow_mut();
        match wakers.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => wakers[at].1.clone_from(waker),
            Err(at) => wakers.insert(at, (key, waker.clone())),
        }
    }

    /// Returns whether it was in the list.
    fn remove(&self, key: u64) -> bool {
        let mut wakers = self.wakers.borrow_mut();
        let found = wakers.binary_search_by_key(&key, |(key, _)| *key);
        found.is_ok_and(|at| wakers.remove(at).is_some())
    }

    /// Wakes the task that has waited longest.
    pub fn wake_one(&self) {
        let first = self.wakers.borrow_mut().pop_front();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    /// Wakes all tasks.
    pub fn wake_all(&self) {
        for (_, waker) in self.wakers.take() {
            waker.wake();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // This task was woken, but did not look: the next one gets its wake.
        if self.waits && !self.list.remove(self.key) {
            self.list.wake_one();
        }
    }
}

/// Something that happens, for which tasks of one thread can wait.
///
/// ```
/// # use futures_util::FutureExt;
/// let stop = xen::Flag::default();
/// assert_eq!(stop.raised().now_or_never(), None);
/// stop.raise();
/// assert_eq!(stop.raised().now_or_never(), Some(()));
/// ```
#[derive(Debug, Default)]
pub struct Flag {
    raised: Cell<bool>,
    waiting: WaitList,
}

impl Flag {
    /// Whether it has happened.
    pub fn is_raised(&self) -> bool {
        self.raised.get()
    }

    /// Notes that it has happened.
    pub fn raise(&self) {
        self.raised.set(true);
        self.waiting.wake_all();
    }

    /// Forgets that it has happened.
    pub fn lower(&self) {
        self.raised.set(false);
    }

    /// Waits until it has happened.
    pub async fn raised(&self) {
        self.waiting.until(|| self.raised.get().then_some(())).await;
    }

    /// Waits until it has happened, and forgets that: it can happen again.
    pub async fn take(&self) {
        self.waiting.until(|| self.raised.take().then_some(())).await;
    }
}

/// Lets other tasks run.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_cancelled_waiter_passes_its_wake_on() {
        let (list, there) = (WaitList::default(), Cell::new(false));
        let ready = || there.get().then_some(());
        let (first_woken, second_woken) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut first = Box::pin(list.until(ready));
        let mut second = pin!(list.until(ready));
        let (first_waker, second_waker) = (first_woken.clone().into(), second_woken.clone().into());
        assert!(first.poll_unpin(&mut Context::from_waker(&first_waker)).is_pending());
        assert!(second.poll_unpin(&mut Context::from_waker(&second_waker)).is_pending());
        there.set(true);
        list.wake_one();
        assert_eq!(first_woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(second_woken.0.load(Ordering::Relaxed), 0);
        drop(first);
        assert_eq!(second_woken.0.load(Ordering::Relaxed), 1);
        assert!(second.poll_unpin(&mut Context::from_waker(&second_waker)).is_ready());
        assert!(list.wakers.borrow().is_empty());
    }
}
