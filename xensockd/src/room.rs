//! What guests together may not use up. The daemon keeps some of what Linux lets it have: without
//! files it could not answer `xensockctl`, and without mappings not allocate memory, which would
//! end it for all guests. Of Xen's table of foreign pages it leaves some to dom0's other backends,
//! which could not serve disks and networks without it.

use crate::counts::Counts;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The files that a thread has open.
const THREAD_FILES: u64 = 16;

/// The other files: of clients of the control socket, and of the rules.
const FILES: u64 = 32;

/// The mappings of the program, its threads and its memory.
const MAPPINGS: u64 = 1000;

/// `vm.max_map_count`, which the sandbox of the unit hides, unless the kernel was told otherwise.
const MAX_MAP_COUNT: u64 = 65530;

/// The entries of Xen's table of this domain's foreign pages, unless `gnttab_max_maptrack_frames`
/// says otherwise, and those that are left to others.
const TRACKED: u64 = 1024 * 256;
const TRACKED_FOR_OTHERS: u64 = TRACKED / 8;

/// Raises the limit of open files to its maximum, and sets how many sockets and mappings all guests
/// together may have.
pub fn reserve(counts: &Counts, threads: usize) {
    let files = raise_file_limit().map_or(u64::MAX, |files| sockets(files, threads as u64));
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let maps = maps.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_MAP_COUNT);
    counts.sockets.set_most(files);
    counts.xen.mappings.set_most(mappings(maps));
    let kind = std::fs::read_to_string("/sys/hypervisor/guest_type").unwrap_or_default();
    counts.xen.pages.set_most(pages(kind.trim()));
    log::debug!("at most {files} sockets and {} mappings", mappings(maps));
}

/// How many of so many files may be sockets.
fn sockets(files: u64, threads: u64) -> u64 {
    // Each socket may have two mappings, and 64 of them share a file.
    let own = FILES + THREAD_FILES * threads + files / 32;
    files.saturating_sub(own)
}

/// How many of so many mappings may be guests' memory.
fn mappings(all: u64) -> u64 {
    all.saturating_sub(MAPPINGS.min(all / 2))
}

/// How many pages of guests may be mapped in a domain of this kind.
fn pages(kind: &str) -> u64 {
    // In a PV domain, the kernel and the process each have their own mapping of a page.
    let each = if kind == "PVH" || kind == "HVM" { 1 } else { 2 };
    (TRACKED - TRACKED_FOR_OTHERS) / each
}

/// Raises the limit of open files to its maximum, as each socket is a file, and returns it.
fn raise_file_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            let now = limit.current;
            log::warn!("cannot raise the limit of open files from {now:?}: {error}");
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_for_the_daemon_and_for_others() {
        assert_eq!(sockets(1 << 20, 4), (1 << 20) - (1 << 15) - 96);
        assert_eq!(sockets(256, 1), 200);
        assert_eq!(sockets(64, 4), 0);
        assert_eq!((mappings(65530), mappings(1 << 20)), (64530, (1 << 20) - 1000));
        assert_eq!(mappings(100), 50);
        assert_eq!((pages("PV"), pages(""), pages("PVH")), (114_688, 114_688, 229_376));
    }
}
