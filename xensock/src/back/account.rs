//! What a guest has of the backend's domain, and how much it may have, over all of its devices.

use super::host::Limits;
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;

/// A guest's account. All of its devices share it, so the limits hold for the guest.
///
/// ```
/// use xensock::back::{Account, Limits};
///
/// let account = Account::new(Limits { sockets: 16, ..Limits::default() });
/// assert_eq!(account.sockets(), 0);
/// // Other limits hold from the next request on. What is open stays open.
/// account.set_limits(Limits::default());
/// ```
#[derive(Debug, Default)]
pub struct Account {
    limits: Cell<Limits>,
    sockets: Cell<usize>,
    pages: Cell<usize>,
    buckets: [Bucket; 3],
}

/// What is limited by the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Bytes that are received for the guest.
    In,
    /// Bytes that the guest sends.
    Out,
    /// Connections.
    Connections,
}

impl Account {
    /// The account of a guest that has nothing yet.
    pub fn new(limits: Limits) -> Rc<Account> {
        Rc::new(Account { limits: Cell::new(limits), ..Account::default() })
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Sets other limits.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// The number of the guest's sockets.
    pub fn sockets(&self) -> usize {
        self.sockets.get()
    }

    /// The number of mapped pages of the guest's data rings.
    pub fn pages(&self) -> usize {
        self.pages.get()
    }

    /// Takes a socket, or nothing beyond the limit.
    pub(super) fn take_socket(self: &Rc<Self>) -> Option<Share> {
        Share::take(self, |account| &account.sockets, 1, self.limits().sockets)
    }

    /// Takes pages that are about to be mapped, or nothing beyond the limit.
    pub(super) fn take_pages(self: &Rc<Self>, count: usize) -> Option<Share> {
        Share::take(self, |account| &account.pages, count, self.limits().pages)
    }

    /// How much of a flow is permitted now: at least one. If nothing is, the time to wait before
    /// another try. Reads the clock only if the guest has used up what it had.
    pub(super) fn permitted(
        &self,
        flow: Flow,
        now: impl FnOnce() -> Duration,
    ) -> Result<usize, Duration> {
        match self.rate(flow) {
            Some(rate) => self.buckets[flow as usize].permitted(rate, now),
            None => Ok(usize::MAX),
        }
    }

    /// Takes what was permitted, or a part of it.
    pub(super) fn take(&self, flow: Flow, count: usize) {
        self.buckets[flow as usize].take(count);
    }

    fn rate(&self, flow: Flow) -> Option<Rate> {
        let limits = self.limits();
        let bytes = |per_second: u64| Rate { per_second, most: per_second.div_ceil(8) };
        Some(match flow {
            Flow::In => bytes(limits.bytes_in_per_second?),
            Flow::Out => bytes(limits.bytes_out_per_second?),
            Flow::Connections => {
                let per_second = limits.connections_per_second?.into();
                Rate { per_second, most: per_second }
            }
        })
    }
}

/// The account of a guest with one device.
impl From<Limits> for Rc<Account> {
    fn from(limits: Limits) -> Self {
        Account::new(limits)
    }
}

/// A part of what a guest may have, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    account: Rc<Account>,
    of: fn(&Account) -> &Cell<usize>,
    count: usize,
}

impl Share {
    fn take(
        account: &Rc<Account>,
        of: fn(&Account) -> &Cell<usize>,
        count: usize,
        limit: usize,
    ) -> Option<Share> {
        let all = of(account).get().checked_add(count).filter(|all| *all <= limit)?;
        of(account).set(all);
        Some(Share { account: account.clone(), of, count })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let all = (self.of)(&self.account);
        all.set(all.get() - self.count);
    }
}

/// A limit by the second.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u64,
    /// The most that can be saved up.
    most: u64,
}

impl Rate {
    /// Rounded up, so that the count has come after this time.
    fn time_of(self, count: u64) -> Duration {
        let nanos = u128::from(count) * 1_000_000_000;
        let nanos = nanos.div_ceil(u128::from(self.per_second.max(1)));
        Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX))
    }

    fn count_in(self, time: Duration) -> u64 {
        let count = time.as_nanos() * u128::from(self.per_second) / 1_000_000_000;
        count.try_into().unwrap_or(u64::MAX)
    }
}

/// A token bucket that is filled only when it is empty, so that using it reads no clock.
#[derive(Debug, Default)]
struct Bucket {
    left: Cell<u64>,
    /// The time up to which it was filled.
    filled: Cell<Option<Duration>>,
}

impl Bucket {
    fn permitted(&self, rate: Rate, now: impl FnOnce() -> Duration) -> Result<usize, Duration> {
        if self.left.get() == 0 {
            self.fill(rate, now());
        }
        match self.left.get() {
            // Waiting for more than one saves wake-ups, and many small operations.
            0 => Err(rate.time_of(rate.most.div_ceil(2))),
            left => Ok(left.min(rate.most).try_into().unwrap_or(usize::MAX)),
        }
    }

    fn fill(&self, rate: Rate, now: Duration) {
        let Some(filled) = self.filled.get() else {
            self.left.set(rate.most);
            return self.filled.set(Some(now));
        };
        let count = rate.count_in(now.saturating_sub(filled));
        self.left.set(count.min(rate.most));
        // The rest of the time, in which less than one came, counts the next time.
        let until = if count < rate.most { filled + rate.time_of(count) } else { now };
        self.filled.set(Some(until));
    }

    fn take(&self, count: usize) {
        self.left.set(self.left.get().saturating_sub(count as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(per_second: u64) -> Rc<Account> {
        Account::new(Limits { bytes_out_per_second: Some(per_second), ..Limits::default() })
    }

    /// Takes all that is permitted, each time that it is, for this long.
    fn taken_in(account: &Account, time: Duration, most: usize) -> usize {
        let (mut now, mut all) = (Duration::from_secs(1000), 0);
        let end = now + time;
        while now < end {
            match account.permitted(Flow::Out, || now) {
                Ok(count) => {
                    account.take(Flow::Out, count.min(most));
                    all += count.min(most);
                }
                Err(wait) => now += wait,
            }
        }
        all
    }

    #[test]
    fn a_flow_has_its_rate_in_whatever_pieces_it_is_taken() {
        for rate in [1_u64, 3, 1000, 1_000_003, 10_000_000_000] {
            for most in [rate.div_ceil(100) as usize, usize::MAX] {
                let taken = taken_in(&limited(rate), Duration::from_secs(20), most) as u64;
                // What was saved up at the start comes first.
                let expected = rate * 20 - rate.div_ceil(100)
                    ..=rate * 20 + rate.div_ceil(8) + rate.div_ceil(16);
                assert!(expected.contains(&taken), "{taken} at {rate} by {most}");
            }
        }
    }

    #[test]
    fn a_rate_that_is_asked_for_all_the_time_still_fills() {
        let account = limited(10);
        let mut now = Duration::from_secs(5);
        let mut all = 0;
        for _ in 0..100_000 {
            now += Duration::from_micros(100);
            if let Ok(count) = account.permitted(Flow::Out, || now) {
                account.take(Flow::Out, count);
                all += count;
            }
        }
        assert!((100..=102).contains(&all), "{all} in ten seconds");
    }

    #[test]
    fn the_clock_is_not_read_while_something_is_left() {
        let account = limited(8000);
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(1000));
        account.take(Flow::Out, 999);
        assert_eq!(account.permitted(Flow::Out, || unreachable!("one is left")), Ok(1));
        assert_eq!(account.permitted(Flow::In, || unreachable!("no limit")), Ok(usize::MAX));
    }

    #[test]
    fn a_lower_rate_holds_at_once() {
        let account = limited(8_000_000);
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(1_000_000));
        account.set_limits(Limits { bytes_out_per_second: Some(80), ..Limits::default() });
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(10));
    }

    #[test]
    fn shares_are_given_back() {
        let account = Account::new(Limits { sockets: 2, pages: 10, ..Limits::default() });
        let first = account.take_socket().unwrap();
        let _second = account.take_socket().unwrap();
        assert!(account.take_socket().is_none());
        drop(first);
        let _third = account.take_socket().unwrap();
        assert!(account.take_pages(11).is_none() && account.take_pages(usize::MAX).is_none());
        let _pages = account.take_pages(10).unwrap();
        assert_eq!((account.sockets(), account.pages()), (2, 10));
    }
}
