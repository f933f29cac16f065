//! Grants: letting another domain map a page of this one (grant table version 1).
//!
//! The table's frames are mapped one by one as it fills. A grant is ended by compare-and-exchange,
//! but not while the peer has the page mapped: then the caller keeps page and reference, and tries
//! again later.
//!
//! To Xen, a restored or migrated domain is a new one, with an empty table: see
//! [`GrantTable::resume`].

use crate::abi::grant_table::*;
use crate::abi::xen::DOMID_INVALID;
use crate::hypercall::{FrameSource, Hypervisor, Operations};
use crate::{DomId, Errno, Gfn, GrantRef, PAGE_SIZE, Shared};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

const ENTRY: usize = size_of::<GrantEntryV1>();
const PER_FRAME: u32 = (PAGE_SIZE / ENTRY) as u32;
const FLAGS: usize = offset_of!(GrantEntryV1, flags);
const DOMID: usize = offset_of!(GrantEntryV1, domid);
const FRAME: usize = offset_of!(GrantEntryV1, frame);

/// How often ending a grant retries after Xen changed the entry in between. The peer decides how
/// often that happens, so the number is bounded.
const ATTEMPTS: usize = 16;

/// What the other domain may do with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// How full a grant table is, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Live grants.
    pub in_use: u32,
    /// Free entries in the frames that are mapped.
    pub free: u32,
    /// The limit for grants.
    pub capacity: u32,
}

/// The domain's grant table.
///
/// ```
/// use xen::grant::{Access, GrantTable};
/// use xen::{DomId, Errno, Gfn, testing::FakeXen};
///
/// let xen = FakeXen::new();
/// let table = GrantTable::new(&xen, &xen)?;
/// // SAFETY: in this example the frame is not a page.
/// let grant = unsafe { table.grant(DomId(0), Gfn(0x1234), Access::ReadWrite) }?;
/// // The peer gets the reference through xenstore or a ring. When it has unmapped the page:
/// table.end(grant)?;
/// # Ok::<(), Errno>(())
/// ```
pub struct GrantTable<H, F> {
    hypervisor: H,
    source: F,
    max_frames: Cell<u32>,
    state: RefCell<State>,
}

struct State {
    frames: Vec<(Gfn, Shared<'static>)>,
    /// Free entries. Its capacity suffices for all, so that freeing one never allocates.
    free: Vec<GrantRef>,
    in_use: u32,
    /// A page for the next frame: mapping failed because Xen was out of memory.
    spare: Option<(Gfn, Shared<'static>)>,
}

impl<H: Hypervisor, F: FrameSource> GrantTable<H, F> {
    /// Maps the table's first frame. The toolstack's entries in it are kept.
    pub fn new(hypervisor: H, source: F) -> Result<Self, Errno> {
        hypervisor.set_grant_table_version_1()?;
        let (_, max_frames) = hypervisor.grant_table_size()?;
        let state = State { frames: Vec::new(), free: Vec::new(), in_use: 0, spare: None };
        let (max_frames, state) = (Cell::new(max_frames), RefCell::new(state));
        let table = GrantTable { hypervisor, source, max_frames, state };
        table.grow(&mut table.state.borrow_mut())?;
        Ok(table)
    }

    /// Lets `peer` map a page. [`Errno::ENOSPC`] if the table is full.
    ///
    /// # Safety
    /// Until the grant is ended, the page is accessed through [`Shared`] alone, and contains
    /// nothing that the peer must not see.
    pub unsafe fn grant(&self, peer: DomId, page: Gfn, access: Access) -> Result<GrantRef, Errno> {
        let frame = u32::try_from(page.0).map_err(|_| Errno::EINVAL)?;
        let mut state = self.state.borrow_mut();
        if state.free.is_empty() {
            self.grow(&mut state)?;
        }
        let grant = state.free.pop().ok_or(Errno::ENOSPC)?;
        state.in_use += 1;
        let (table, at) = state.entry(grant).ok_or(Errno::EINVAL)?;
        let readonly = match access {
            Access::ReadOnly => GTF_READONLY,
            Access::ReadWrite => 0,
        };
        table.store_u16(at + DOMID, peer.0, Relaxed);
        table.store_u32(at + FRAME, frame, Relaxed);
        // The flags make the entry valid, so they become visible last.
        table.store_u16(at + FLAGS, GTF_PERMIT_ACCESS | readonly, Release);
        Ok(grant)
    }

    /// Ends a grant. After `Ok` the peer cannot access the page through it.
    ///
    /// [`Errno::EBUSY`]: the peer has the page mapped. The grant is still live, and both page and
    /// reference must be kept. [`Errno::EINVAL`]: there is no such grant.
    pub fn end(&self, grant: GrantRef) -> Result<(), Errno> {
        let mut state = self.state.borrow_mut();
        let (table, at) = state.entry(grant).ok_or(Errno::EINVAL)?;
        let mut flags = table.load_u16(at + FLAGS, Acquire);
        for _ in 0..ATTEMPTS {
            if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS {
                return Err(Errno::EINVAL);
            }
            if flags & (GTF_READING | GTF_WRITING) != 0 {
                return Err(Errno::EBUSY);
            }
            match table.compare_exchange_u16(at + FLAGS, flags, GTF_INVALID, SeqCst) {
                Ok(_) => {
                    state.in_use -= 1;
                    state.free.push(grant);
                    return Ok(());
                }
                Err(now) => flags = now,
            }
        }
        Err(Errno::EBUSY)
    }

    /// How full the table is.
    pub fn usage(&self) -> Usage {
        let state = self.state.borrow();
        Usage {
            in_use: state.in_use,
            free: state.free.len() as u32,
            capacity: self
                .max_frames
                .get()
                .saturating_mul(PER_FRAME)
                .saturating_sub(GNTTAB_NR_RESERVED_ENTRIES),
        }
    }

    /// Sets the table up in a restored domain: maps the frames that it had, at the same places.
    ///
    /// No domain can map pages through former grants. Their references stay allocated until each is
    /// [ended](GrantTable::end), as always.
    pub fn resume(&self) -> Result<(), Errno> {
        self.hypervisor.set_grant_table_version_1()?;
        let (_, max_frames) = self.hypervisor.grant_table_size()?;
        self.max_frames.set(max_frames);
        let state = self.state.borrow();
        for (index, (gfn, _)) in (0..).zip(&state.frames) {
            // SAFETY: the source gave the page away, and only this table uses it.
            unsafe { self.hypervisor.map_grant_frame(index, *gfn) }?;
        }
        // An entry does not tell whether it is free, so first all become grants to no domain.
        let all = state.frames.len() as u32 * PER_FRAME;
        for (table, at) in (0..all).filter_map(|grant| state.entry(GrantRef(grant))) {
            table.store_u16(at + DOMID, DOMID_INVALID, Relaxed);
            table.store_u32(at + FRAME, 0, Relaxed);
            table.store_u16(at + FLAGS, GTF_PERMIT_ACCESS, Release);
        }
        for (table, at) in state.free.iter().filter_map(|grant| state.entry(*grant)) {
            table.store_u16(at + FLAGS, GTF_INVALID, Relaxed);
        }
        Ok(())
    }

    /// Maps the table's next frame.
    fn grow(&self, state: &mut State) -> Result<(), Errno> {
        let index = state.frames.len() as u32;
        if index >= self.max_frames.get() {
            return Err(Errno::ENOSPC);
        }
        let (gfn, frame) = match state.spare.take() {
            Some(page) => page,
            None => self.source.take()?,
        };
        // SAFETY: the source gave the page away, and only this table uses it.
        if let Err(error) = unsafe { self.hypervisor.map_grant_frame(index, gfn) } {
            // Xen may have memory at the next attempt.
            state.spare = Some((gfn, frame));
            return Err(error);
        }
        state.frames.push((gfn, frame));
        let total = (index + 1) * PER_FRAME;
        let missing = total as usize - state.free.len();
        state.free.reserve(missing);
        // The lowest are allocated first.
        let first = (index * PER_FRAME).max(GNTTAB_NR_RESERVED_ENTRIES);
        state.free.extend((first..total).rev().map(GrantRef));
        Ok(())
    }
}

impl State {
    /// The frame of an entry and the offset in it. `None` for the toolstack's entries.
    fn entry(&self, grant: GrantRef) -> Option<(Shared<'static>, usize)> {
        if grant.0 < GNTTAB_NR_RESERVED_ENTRIES {
            return None;
        }
        let (_, frame) = *self.frames.get((grant.0 / PER_FRAME) as usize)?;
        Some((frame, (grant.0 % PER_FRAME) as usize * ENTRY))
    }
}

#[cfg(test)]
mod tests;
