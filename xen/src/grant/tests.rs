use super::*;
use crate::abi::memory::XENMAPSPACE_GRANT_TABLE;
use crate::testing::{Done, FakeXen};
use std::collections::HashSet;

/// Leaks plain memory, and keeps it so that a test can play the peer.
#[derive(Default)]
struct Memory(RefCell<Vec<Shared<'static>>>);

// SAFETY: the pages are leaked, and used by nothing else.
unsafe impl FrameSource for &Memory {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let memory = Box::leak(Box::new([0u64; 512]));
        // SAFETY: as above.
        let page = unsafe { Shared::new(memory.as_mut_ptr().cast(), PAGE_SIZE) };
        self.0.borrow_mut().push(page);
        Ok((Gfn(self.0.borrow().len() as u64), page))
    }
}

impl Memory {
    fn entry(&self, grant: GrantRef) -> (Shared<'static>, usize) {
        let frame = self.0.borrow()[(grant.0 / PER_FRAME) as usize];
        (frame, (grant.0 % PER_FRAME) as usize * ENTRY)
    }

    fn flags(&self, grant: GrantRef) -> u16 {
        let (frame, at) = self.entry(grant);
        frame.load_u16(at, SeqCst)
    }

    fn set(&self, grant: GrantRef, flags: u16) {
        let (frame, at) = self.entry(grant);
        frame.fetch_or_u16(at, flags, SeqCst);
    }

    fn clear(&self, grant: GrantRef, flags: u16) {
        let (frame, at) = self.entry(grant);
        frame.fetch_and_u16(at, !flags, SeqCst);
    }
}

fn grant<F: FrameSource>(table: &GrantTable<&FakeXen, F>, page: u64) -> Result<GrantRef, Errno> {
    // SAFETY: the frame is not a page.
    unsafe { table.grant(DomId(7), Gfn(page), Access::ReadWrite) }
}

#[test]
fn a_grant_is_written_as_xen_reads_it() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    // SAFETY: the frame is not a page.
    let grant = unsafe { table.grant(DomId(7), Gfn(0x1234), Access::ReadOnly) }.unwrap();
    assert_eq!(grant, GrantRef(8), "the first eight are the toolstack's");
    let mut entry = [0; 8];
    memory.0.borrow()[0].read(64, &mut entry);
    assert_eq!(entry, [5, 0, 7, 0, 0x34, 0x12, 0, 0]);
    table.end(grant).unwrap();
    assert_eq!(memory.flags(grant), GTF_INVALID);
}

#[test]
fn a_grant_that_the_peer_has_mapped_cannot_be_ended() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    let one = grant(&table, 1).unwrap();
    memory.set(one, GTF_READING | GTF_WRITING);
    assert_eq!(table.end(one), Err(Errno::EBUSY));
    assert_eq!(table.usage().in_use, 1);
    assert_ne!(grant(&table, 2).unwrap(), one, "the reference is not allocated again");
    memory.clear(one, GTF_WRITING);
    assert_eq!(table.end(one), Err(Errno::EBUSY), "the peer can still read");
    memory.clear(one, GTF_READING);
    table.end(one).unwrap();
    assert_eq!(table.end(one), Err(Errno::EINVAL));
}

#[test]
fn the_table_grows_to_its_limit_and_no_further() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    let capacity = table.usage().capacity;
    assert_eq!(capacity, 2 * 512 - 8);
    let grants: Vec<_> = (0..capacity.into()).map(|page| grant(&table, page).unwrap()).collect();
    assert_eq!(grants.iter().collect::<HashSet<_>>().len(), grants.len());
    assert!(grants.iter().all(|grant| grant.0 >= 8));
    assert_eq!(grant(&table, 0), Err(Errno::ENOSPC));
    assert_eq!(table.usage(), Usage { in_use: capacity, free: 0, capacity });
    let space = XENMAPSPACE_GRANT_TABLE;
    let mapped = [1, 2].map(|at| Done::Mapped { space, index: at - 1, at });
    assert_eq!(xen.take_done(), mapped);
    let room = table.state.borrow().free.capacity();
    grants.iter().for_each(|&grant| table.end(grant).unwrap());
    assert_eq!(table.usage(), Usage { in_use: 0, free: capacity, capacity });
    assert_eq!(table.state.borrow().free.capacity(), room, "freeing an entry allocates nothing");
    assert!(grant(&table, 0).is_ok());
}

#[test]
fn mapping_a_frame_is_retried_at_the_same_place_when_xen_was_out_of_memory() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    for page in 0..512 - 8 {
        grant(&table, page).unwrap();
    }
    xen.out_of_memory.set(true);
    for _ in 0..3 {
        assert_eq!(grant(&table, 0), Err(Errno::ENOMEM));
    }
    xen.out_of_memory.set(false);
    assert_eq!(grant(&table, 0), Ok(GrantRef(512)));
    assert_eq!(memory.0.borrow().len(), 2, "no page was lost");
}

#[test]
fn references_that_are_not_grants_are_refused() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    for reference in [0, 7, 8, 511, 512, u32::MAX] {
        assert_eq!(table.end(GrantRef(reference)), Err(Errno::EINVAL), "{reference}");
    }
    assert_eq!(grant(&table, 1 << 32), Err(Errno::EINVAL));
    assert_eq!(table.usage().in_use, 0);
}

#[test]
fn former_grants_of_a_restored_domain_give_no_access_and_end_as_always() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    let grants: Vec<_> = (0..600).map(|page| grant(&table, page).unwrap()).collect();
    table.end(grants[3]).unwrap();
    let usage = table.usage();
    memory.set(grants[1], GTF_READING);
    xen.take_done();
    // The frames are empty, and the toolstack's entries are in the new table.
    memory.0.borrow().iter().for_each(|frame| frame.zero());
    memory.set(GrantRef(1), GTF_PERMIT_ACCESS);
    xen.max_grant_frames.set(3);
    table.resume().unwrap();
    let space = XENMAPSPACE_GRANT_TABLE;
    let mapped = [1, 2].map(|at| Done::Mapped { space, index: at - 1, at });
    assert_eq!(xen.take_done(), mapped);
    assert_eq!(table.usage(), Usage { capacity: 3 * 512 - 8, ..usage });
    let mut entry = [0; 8];
    memory.0.borrow()[0].read(8, &mut entry);
    assert_eq!(entry, [1, 0, 0, 0, 0, 0, 0, 0], "the toolstack's entry is kept");
    memory.0.borrow()[0].read(64, &mut entry);
    assert_eq!(entry, [1, 0, 0xf4, 0x7f, 0, 0, 0, 0], "a grant to no domain");
    assert_eq!(memory.flags(grants[3]), GTF_INVALID);
    assert_eq!(table.end(grants[3]), Err(Errno::EINVAL), "the reference was free");
    // No new grant takes a reference that its owner has not ended yet.
    let new = grant(&table, 5).unwrap();
    assert_eq!(new, grants[3]);
    assert!((0..900).map(|page| grant(&table, page)).all(|new| !grants.contains(&new.unwrap())));
    for (index, former) in grants.iter().enumerate().filter(|(index, _)| *index != 3) {
        table.end(*former).unwrap_or_else(|error| panic!("{index}: {error}"));
    }
    assert!(grants.contains(&grant(&table, 7).unwrap()), "the references are free again");
}

#[test]
fn a_frame_that_xen_does_not_map_again_is_an_error_and_can_be_retried() {
    let (xen, memory) = (FakeXen::new(), Memory::default());
    let table = GrantTable::new(&xen, &memory).unwrap();
    grant(&table, 1).unwrap();
    xen.out_of_memory.set(true);
    assert_eq!(table.resume(), Err(Errno::ENOMEM));
    xen.out_of_memory.set(false);
    table.resume().unwrap();
}
