//! The answers that are still true.

use super::message::{Answer, Question};
use alloc::vec::Vec;
use core::net::IpAddr;
use embassy_time::{Duration, Instant};

/// The most answers that are kept.
const MAX_ENTRIES: usize = 64;

/// How long an answer is kept at most, and how long that there is no address (RFC 2308, section 5).
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_NEGATIVE_TIME: Duration = Duration::from_secs(60 * 60);

/// Answers and until when each is true.
#[derive(Default)]
pub(super) struct Cache(Vec<Entry>);

struct Entry {
    question: Question,
    /// None if there is no address.
    address: Option<IpAddr>,
    until: Instant,
}

impl Cache {
    /// The answer to a question, if it is known: the address, or that there is none.
    pub(super) fn get(&self, question: &Question, now: Instant) -> Option<Option<IpAddr>> {
        let known = |entry: &&Entry| entry.question == *question && now < entry.until;
        self.0.iter().find(known).map(|entry| entry.address)
    }

    /// Keeps an answer for its time. A full cache forgets what is true for the shortest time.
    pub(super) fn put(&mut self, question: Question, answer: Answer, now: Instant) {
        let (address, time) = match answer {
            Answer::Address(address, time) => (Some(address), time.min(MAX_TIME)),
            Answer::Nothing(time) => (None, time.min(MAX_NEGATIVE_TIME)),
            Answer::Truncated | Answer::Refused(_) => return,
        };
        self.0.retain(|entry| now < entry.until && entry.question != question);
        if time == Duration::from_ticks(0) {
            return;
        }
        if self.0.len() == MAX_ENTRIES
            && let Some((first, _)) = self.0.iter().enumerate().min_by_key(|(_, entry)| entry.until)
        {
            self.0.swap_remove(first);
        }
        self.0.push(Entry { question, address, until: now + time });
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Kind;
    use super::*;
    use alloc::format;
    use core::net::Ipv4Addr;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn question(host: &str) -> Question {
        Question::new(host, Kind::V4).unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn found(seconds: u64) -> Answer {
        Answer::Address(ADDRESS, Duration::from_secs(seconds))
    }

    #[test]
    fn an_answer_is_kept_for_its_time() {
        let mut cache = Cache::default();
        cache.put(question("a"), found(60), at(100));
        cache.put(question("b"), Answer::Nothing(Duration::from_secs(30)), at(100));
        assert_eq!(cache.get(&question("A"), at(159)), Some(Some(ADDRESS)));
        assert_eq!(cache.get(&question("a"), at(160)), None);
        assert_eq!(cache.get(&question("b"), at(129)), Some(None));
        assert_eq!(cache.get(&question("b"), at(130)), None);
        assert_eq!(cache.get(&question("c"), at(100)), None);
        assert_eq!(cache.get(&Question::new("a", Kind::V6).unwrap(), at(100)), None);
    }

    #[test]
    fn an_answer_without_time_is_not_kept_and_replaces_the_former() {
        let mut cache = Cache::default();
        cache.put(question("a"), found(60), at(100));
        cache.put(question("a"), found(0), at(101));
        assert_eq!(cache.get(&question("a"), at(101)), None);
        cache.put(question("a"), Answer::Refused(2), at(101));
        assert_eq!(cache.get(&question("a"), at(101)), None);
    }

    #[test]
    fn no_answer_is_kept_longer_than_a_day_and_no_missing_one_longer_than_an_hour() {
        let mut cache = Cache::default();
        cache.put(question("a"), found(i32::MAX as u64), at(0));
        cache.put(question("b"), Answer::Nothing(Duration::from_secs(86_400)), at(0));
        assert_eq!(cache.get(&question("a"), at(86_399)), Some(Some(ADDRESS)));
        assert_eq!(cache.get(&question("a"), at(86_400)), None);
        assert_eq!(cache.get(&question("b"), at(3_599)), Some(None));
        assert_eq!(cache.get(&question("b"), at(3_600)), None);
    }

    #[test]
    fn a_full_cache_forgets_what_is_true_for_the_shortest_time() {
        let mut cache = Cache::default();
        for number in 0..1000 {
            cache.put(question(&format!("host{number}")), found(1000 + number), at(0));
        }
        let kept = |number| cache.get(&question(&format!("host{number}")), at(0)).is_some();
        assert_eq!((0..1000).filter(|&number| kept(number)).count(), MAX_ENTRIES);
        assert!(kept(999) && !kept(0));
    }
}
