//! Communication between domains, in real Xen.

mod deaths;
mod disk;
mod ends;
mod exam;
mod hostile;
mod neighbours;
mod quotas;
mod suspend;

use crate::fixture::Case;

/// The tests of this module's files.
pub fn cases() -> Vec<(&'static str, Case)> {
    [
        neighbours::CASES,
        exam::CASES,
        disk::CASES,
        deaths::CASES,
        suspend::CASES,
        quotas::CASES,
        hostile::CASES,
    ]
    .concat()
}
