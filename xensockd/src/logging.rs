//! The log: entries with fields if the standard error is the journal, and otherwise lines.

use log::LevelFilter;
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// The name of the program in the journal.
const IDENTIFIER: &str = "xensockd";

/// Logs something about a guest: `about!(warn, guest, "…")`, where `guest` is a
/// [`Guest`](crate::guests::Guest). In the journal the entry has the fields `DOMID` and `GUEST`.
macro_rules! about {
    ($level:ident, $guest:expr, $($text:tt)+) => {{
        let guest = $guest;
        let (id, name) = (guest.id().0, guest.name());
        log::$level!(DOMID = id, GUEST = name.as_str(); "{guest}: {}", format_args!($($text)+))
    }};
}
pub(crate) use about;

/// Starts the log. Returns whether it goes to the journal.
pub fn start(level: LevelFilter) -> bool {
    let is_journal = connected_to_journal() && start_journal().is_ok();
    if !is_journal {
        env_logger::Builder::new()
            .filter_level(LevelFilter::max())
            .format_timestamp_millis()
            .format_target(false)
            .init();
    }
    // It may be changed while the daemon runs.
    log::set_max_level(level);
    is_journal
}

/// Sends the log to the journal.
pub fn start_journal() -> Result<(), String> {
    let journal = JournalLog::empty().map_err(|error| error.to_string())?;
    let journal = journal.with_syslog_identifier(IDENTIFIER.into());
    journal.install().map_err(|error| error.to_string())
}
