//! Grants: a peer maps and unmaps a page while its owner ends the grant.

use crate::check;
use crate::memory::Pages;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use xen::abi::grant_table::*;
use xen::grant::{Access, GrantTable};
use xen::hypercall::FrameSource;
use xen::testing::FakeXen;
use xen::testing::model::loom::thread;
use xen::{DomId, Errno, Gfn, GrantRef, PAGE_SIZE, Shared};

/// The first entry that is not the toolstack's.
const GRANT: GrantRef = GrantRef(8);
const FLAGS: usize = 64;
const FRAME: usize = 68;
const MAPPED: u16 = GTF_READING | GTF_WRITING;

struct Table(Shared<'static>);

// SAFETY: the page is used by nothing else, and no frame is really mapped.
unsafe impl FrameSource for Table {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        Ok((Gfn(1), self.0))
    }
}

/// Records of the owner and the peer. It has no loom types, so loom does not interrupt between an
/// access and its record.
#[derive(Default)]
struct Notes {
    /// The page that is granted, or about to be.
    granted: Cell<u32>,
    is_mapped: Cell<bool>,
}

/// Maps the page, as Xen does for a peer, if there is a grant; uses it, and unmaps it.
fn map(table: Shared<'_>, pages: [Shared<'_>; 2], notes: &Notes) {
    let flags = table.load_u16(FLAGS, Relaxed);
    if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS
        || table.compare_exchange_u16(FLAGS, flags, flags | MAPPED, AcqRel).is_err()
    {
        return;
    }
    notes.is_mapped.set(true);
    let granted = notes.granted.get();
    let frame = table.load_u32(FRAME, Relaxed);
    assert_eq!(frame, granted, "the entry is valid before it is written");
    let page = pages[frame as usize - 1];
    let mut byte = [0];
    page.read(0, &mut byte);
    assert_eq!(byte[0] & 0xf, frame as u8, "the page is not what its owner granted");
    page.write(0, &[0xe0 | frame as u8]);
    table.fetch_and_u16(FLAGS, !MAPPED, AcqRel);
    notes.is_mapped.set(false);
}

/// The owner ends a grant when the peer lets it, uses the page for itself, and grants another one
/// with the same reference.
pub fn ended() {
    let memory = Pages::default();
    let table = memory.page(PAGE_SIZE, &[FLAGS, 66, FRAME], None);
    // The used parts of pages 1 and 2.
    let pages = [(); 2].map(|()| memory.page(1, &[], Some(0..1)));
    let xen = FakeXen::over(table, Vec::new());
    let grants = GrantTable::new(&xen, Table(table)).unwrap();
    let notes = Rc::new(Notes::default());
    let grant = |number: u32| {
        pages[number as usize - 1].write(0, &[number as u8]);
        notes.granted.set(number);
        // SAFETY: the page is accessed as `Shared` alone.
        let grant = unsafe { grants.grant(DomId(7), Gfn(number.into()), Access::ReadWrite) };
        assert_eq!(grant, Ok(GRANT));
    };
    grant(1);
    let theirs = notes.clone();
    let peer = thread::spawn(move || {
        map(table, pages, &theirs);
        map(table, pages, &theirs);
    });
    while let Err(error) = grants.end(GRANT) {
        assert_eq!(error, Errno::EBUSY);
        thread::yield_now();
    }
    assert!(!notes.is_mapped.get(), "the peer has the page mapped");
    pages[0].write(0, &[0xaa]);
    grant(2);
    peer.join().unwrap();
}

#[test]
fn an_ended_grant_gives_no_access() {
    check(ended);
}
