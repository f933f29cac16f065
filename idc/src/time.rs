//! Times to wait, and log lines that another end can cause as often as it wants.

use core::cell::Cell;
use core::future::pending;
use embassy_time::{Duration, Instant, Timer};
use log::Level;

/// Waits until `time`, which never comes if it is [`Instant::MAX`]: a timer's entry stays until
/// its time.
pub(crate) async fn at(time: Instant) {
    match time {
        Instant::MAX => pending().await,
        time => Timer::at(time).await,
    }
}

/// The least time between two lines that everybody sees.
const PAUSE: Duration = Duration::from_secs(10);

/// Demotes log lines that follow another one too soon.
#[derive(Default)]
pub(crate) struct Quiet(Cell<Option<Instant>>);

impl Quiet {
    /// The level for the next line: `level`, or a lower one if there was such a line a moment ago.
    pub(crate) fn level(&self, level: Level) -> Level {
        let now = Instant::now();
        if self.0.get().is_some_and(|last| now < last + PAUSE) {
            return Level::Debug;
        }
        self.0.set(Some(now));
        level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_line_in_the_same_moment_is_for_debugging() {
        let quiet = Quiet::default();
        assert_eq!(
            [(); 3].map(|()| quiet.level(Level::Warn)),
            [Level::Warn, Level::Debug, Level::Debug]
        );
    }
}
