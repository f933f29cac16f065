//! The page tables: an identity mapping, with the fewest rights that each page needs.
//!
//! Code is executable and read-only, constants are read-only, and everything else is writable and
//! not executable. Page zero, guard pages, and addresses without memory are not mapped.

use super::ram::{LOW_END, Region};
use super::{image, pages};
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags as Flags,
    PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// Readable, writable, not executable.
const DATA: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE);

/// All rights: the last level decides.
const TABLES: Flags = Flags::PRESENT.union(Flags::WRITABLE);

/// The rights of a page; `None` if it stays unmapped.
fn rights(address: u64) -> Option<Flags> {
    if address < Size4KiB::SIZE || image::guards().contains(&address) {
        None
    } else if image::code().contains(&address) {
        Some(Flags::PRESENT)
    } else if (image::rodata_start()..image::data_start()).contains(&address)
        || (image::symbols_start()..image::end()).contains(&address)
    {
        Some(Flags::PRESENT | Flags::NO_EXECUTE)
    } else {
        Some(DATA)
    }
}

/// Whether the 2 MiB at `address` are ordinary data.
fn is_plain(address: u64) -> bool {
    address >= LOW_END
        && (address + Size2MiB::SIZE <= image::text_start() || address >= image::end())
}

/// Takes frames for tables from the front of a free region.
struct Front<'f>(&'f mut Region);

// SAFETY: each frame is removed from the region before it is returned; the region is free memory,
// as `activate`'s caller guarantees.
unsafe impl FrameAllocator<Size4KiB> for Front<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let start = self.0.start;
        if self.0.len() < Size4KiB::SIZE {
            return None;
        }
        self.0.start += Size4KiB::SIZE;
        Some(PhysFrame::containing_address(PhysAddr::new(start)))
    }
}

/// Builds tables for `ram` and the image, and switches to them. Takes the frames for the tables
/// from `free`.
///
/// # Safety
/// Called once, at boot, with everything below 4 GiB identity-mapped. `free` must be RAM below 4
/// GiB that is not in use, and nothing outside `ram` and the image may be in use.
pub unsafe fn activate(ram: impl Iterator<Item = Region>, free: &mut Region) {
    let root = Front(free).allocate_frame().expect("no memory for page tables");
    // SAFETY: the frame is free memory, identity-mapped, and now belongs to the tables.
    let table = unsafe { &mut *(root.start_address().as_u64() as *mut PageTable) };
    *table = PageTable::new();
    // SAFETY: frames for tables are below 4 GiB, where memory is identity-mapped.
    let mut tables = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };
    for region in ram.map(Region::pages_within).chain([image::region()]) {
        let mut at = region.start;
        while at < region.end {
            let large = at.is_multiple_of(Size2MiB::SIZE)
                && region.end - at >= Size2MiB::SIZE
                && is_plain(at);
            if large {
                map::<Size2MiB>(&mut tables, at, DATA, &mut Front(free));
                at += Size2MiB::SIZE;
            } else {
                if let Some(rights) = rights(at) {
                    map::<Size4KiB>(&mut tables, at, rights, &mut Front(free));
                }
                at += Size4KiB::SIZE;
            }
        }
    }
    // SAFETY: the new tables map all memory in use (guaranteed by the caller) at the same
    // addresses.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
}

fn map<'t, S: PageSize>(
    tables: &mut OffsetPageTable<'t>,
    at: u64,
    flags: Flags,
    frames: &mut impl FrameAllocator<Size4KiB>,
) where
    OffsetPageTable<'t>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new(at));
    let frame = PhysFrame::containing_address(PhysAddr::new(at));
    // SAFETY: the mapping is an identity mapping, so it creates no alias; the rights are those
    // that the page needs.
    let mapped = unsafe { tables.map_to_with_table_flags(page, frame, flags, TABLES, frames) };
    match mapped {
        Ok(flush) => flush.ignore(),
        // The image is a part of RAM, so its pages are mapped already.
        Err(MapToError::PageAlreadyMapped(_) | MapToError::ParentEntryHugePage) => {}
        Err(MapToError::FrameAllocationFailed) => panic!("no memory for page tables"),
    }
}

/// Takes frames for tables from the free pages.
struct FromPages;

// SAFETY: the allocator returns each page once.
unsafe impl FrameAllocator<Size4KiB> for FromPages {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let page = pages::alloc(1)?.addr().get() as u64;
        Some(PhysFrame::containing_address(PhysAddr::new(page)))
    }
}

/// Maps pages outside of RAM (the toolstack's special pages, modules) for reading and writing.
///
/// # Safety
/// They must not be pages of the kernel. [`activate`] and `pages::add` were called before.
pub unsafe fn map_special(region: Region) {
    // SAFETY: passed on to the caller.
    unsafe { map_outside_ram::<Size4KiB>(region.pages_around()) };
}

/// Maps 2 MiB pages, aligned, outside of RAM for reading and writing. There need not be anything
/// behind them yet.
///
/// # Safety
/// As for [`map_special`].
pub unsafe fn map_large(region: Region) {
    // SAFETY: passed on to the caller.
    unsafe { map_outside_ram::<Size2MiB>(region) };
}

/// # Safety
/// As for [`map_special`].
unsafe fn map_outside_ram<S: PageSize>(region: Region)
where
    for<'t> OffsetPageTable<'t>: Mapper<S>,
{
    let (root, _) = Cr3::read();
    // SAFETY: `activate`'s tables are identity-mapped. Nothing else refers to them: there is one
    // CPU, and this function does not call itself.
    let table = unsafe { &mut *(root.start_address().as_u64() as *mut PageTable) };
    // SAFETY: all tables are in RAM, which is identity-mapped.
    let mut tables = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };
    for at in (region.start..region.end).step_by(S::SIZE as usize) {
        map::<S>(&mut tables, at, DATA, &mut FromPages);
    }
}
