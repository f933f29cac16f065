//! What a guest has of the backend's domain, and how much it may have, over all of its devices.

use super::host::Limits;
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;
use xen::Turn;

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
    backlog: Cell<usize>,
    requests: Cell<u64>,
    turn: Rc<Turn>,
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
        Account::with_turn(limits, Rc::default())
    }

    /// Such an account whose work is charged to this turn.
    pub fn with_turn(limits: Limits, turn: Rc<Turn>) -> Rc<Account> {
        Rc::new(Account { limits: Cell::new(limits), turn, ..Account::default() })
    }

    /// The work that is done for the guest.
    pub fn turn(&self) -> &Turn {
        &self.turn
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

    /// The number of requests that its devices have carried out.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Counts a request.
    pub(super) fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// Takes a socket, or nothing beyond the limit.
    pub(super) fn take_socket(self: &Rc<Self>) -> Option<Share> {
        Share::take(self, |account| &account.sockets, 1, self.limits().sockets)
    }

    /// Takes pages that are about to be mapped, or nothing beyond the limit.
    pub(super) fn take_pages(self: &Rc<Self>, count: usize) -> Option<Share> {
        Share::take(self, |account| &account.pages, count, self.limits().pages)
    }

    /// A share of the connections that may wait to be accepted, of none at first.
    pub(super) fn backlog(self: &Rc<Self>) -> Share {
        Share { account: self.clone(), of: |account| &account.backlog, count: 0 }
    }

    /// How much of a flow is permitted now: at least one. A datagram may take more at once; then
    /// nothing is permitted until the rest has come, too. If nothing is, the time to wait before
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

    /// Takes what was permitted, a part of it, or more.
    pub(super) fn take(&self, flow: Flow, count: usize) {
        // Without a limit nothing is owed, also if there is one later.
        if self.rate(flow).is_some() {
            self.buckets[flow as usize].take(count);
        }
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

    /// How large it is.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Makes it so large, or as large as the limit permits.
    pub(super) fn resize(&mut self, count: usize, limit: usize) {
        let all = (self.of)(&self.account);
        let others = all.get() - self.count;
        self.count = count.min(limit.saturating_sub(others));
        all.set(others + self.count);
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
    /// Negative if more was taken than was there.
    left: Cell<i64>,
    /// The time up to which it was filled.
    filled: Cell<Option<Duration>>,
}

impl Bucket {
    fn permitted(&self, rate: Rate, now: impl FnOnce() -> Duration) -> Result<usize, Duration> {
        if self.left.get() <= 0 {
            self.fill(rate, now());
        }
        match u64::try_from(self.left.get()) {
            // Waiting for more than one saves wake-ups, and many small operations.
            Ok(0) | Err(_) => {
                Err(rate.time_of(self.left.get().unsigned_abs() + rate.most.div_ceil(2)))
            }
            Ok(left) => Ok(left.min(rate.most).try_into().unwrap_or(usize::MAX)),
        }
    }

    fn fill(&self, rate: Rate, now: Duration) {
        let Some(filled) = self.filled.get() else {
            self.left.set(rate.most as i64);
            return self.filled.set(Some(now));
        };
        let count = rate.count_in(now.saturating_sub(filled));
        let most = rate.most + self.left.get().unsigned_abs();
        self.left.set(self.left.get() + count.min(most) as i64);
        // The rest of the time, in which less than one came, counts the next time.
        let until = if count < most { filled + rate.time_of(count) } else { now };
        self.filled.set(Some(until));
    }

    fn take(&self, count: usize) {
        self.left.set(self.left.get().saturating_sub_unsigned(count as u64));
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
    fn more_than_was_permitted_is_owed_by_those_who_come_later() {
        let account = limited(8000);
        let start = Duration::from_secs(1);
        assert_eq!(account.permitted(Flow::Out, || start), Ok(1000));
        account.take(Flow::Out, 9000);
        let wait = account.permitted(Flow::Out, || start).unwrap_err();
        assert!(wait > Duration::from_secs(1), "{wait:?} for the 8000 that are owed");
        assert!(account.permitted(Flow::Out, || start + Duration::from_millis(999)).is_err());
        assert!(account.permitted(Flow::Out, || start + wait).is_ok());
    }

    #[test]
    fn what_passed_without_a_limit_is_not_owed() {
        let account = Account::new(Limits::default());
        account.take(Flow::Out, 1 << 40);
        account.set_limits(Limits { bytes_out_per_second: Some(8000), ..Limits::default() });
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(1000));
    }

    #[test]
    fn a_lower_rate_holds_at_once() {
        let account = limited(8_000_000);
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(1_000_000));
        account.set_limits(Limits { bytes_out_per_second: Some(80), ..Limits::default() });
        assert_eq!(account.permitted(Flow::Out, || Duration::ZERO), Ok(10));
    }

    #[test]
    fn a_share_grows_into_what_the_others_leave() {
        let account = Account::new(Limits::default());
        let (mut one, mut other) = (account.backlog(), account.backlog());
        one.resize(7, 10);
        other.resize(7, 10);
        assert_eq!((one.count(), other.count()), (7, 3));
        one.resize(2, 10);
        other.resize(100, 10);
        assert_eq!((one.count(), other.count()), (2, 8));
        // A lower limit takes nothing away until the next request.
        one.resize(5, 4);
        assert_eq!((one.count(), other.count()), (0, 8));
        drop((one, other));
        assert_eq!(account.backlog.get(), 0);
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
