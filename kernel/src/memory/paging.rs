//! The page tables: every address maps to itself, with no more rights than its use needs.
//!
//! Code can be executed and not written, constants only read, everything else read and written and
//! never executed. Page zero, the pages below stacks and whatever is not memory are not mapped.

use super::ram::{LOW_END, Region};
use super::{image, pages};
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags as Flags,
    PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// Read and write, never execute.
const DATA: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE);

/// Tables themselves allow everything: the last level decides.
const TABLES: Flags = Flags::PRESENT.union(Flags::WRITABLE);

/// The rights of one page of memory; `None` for a page that stays unmapped.
fn rights(address: u64) -> Option<Flags> {
    if address < Size4KiB::SIZE || image::guards().contains(&address) {
        None
    } else if (image::text_start()..image::rodata_start()).contains(&address) {
        Some(Flags::PRESENT)
    } else if (image::rodata_start()..image::data_start()).contains(&address)
        || (image::symbols_start()..image::end()).contains(&address)
    {
        Some(Flags::PRESENT | Flags::NO_EXECUTE)
    } else {
        Some(DATA)
    }
}

/// Whether all of the 2 MiB from `address` on are plain data.
fn is_plain(address: u64) -> bool {
    address >= LOW_END
        && (address + Size2MiB::SIZE <= image::text_start() || address >= image::end())
}

/// Takes frames for tables from the front of a piece of free memory.
struct Front<'f>(&'f mut Region);

// SAFETY: each frame is cut off the region before it is handed out, so it is handed out once; the
// region is free memory by `activate`'s contract.
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

/// Builds tables for all of `ram` and the image, and switches to them. Frames for the tables are
/// cut off `free`.
///
/// # Safety
/// Once, at boot, with everything below 4 GiB mapped to itself. `free` must be RAM below 4 GiB that
/// nobody uses, and nothing outside `ram` and the image may be in use.
pub unsafe fn activate(ram: impl Iterator<Item = Region>, free: &mut Region) {
    let root = Front(free).allocate_frame().expect("no memory for page tables");
    // SAFETY: the frame is free memory, mapped to itself, and now belongs to the tables.
    let table = unsafe { &mut *(root.start_address().as_u64() as *mut PageTable) };
    *table = PageTable::new();
    // SAFETY: frames for tables lie below 4 GiB, where memory is mapped to itself.
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
    // SAFETY: the new tables map all that is in use (the caller's promise) where it was before.
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
    // SAFETY: an address maps to itself, so no memory gets a second name; the rights are those that
    // its use needs.
    let mapped = unsafe { tables.map_to_with_table_flags(page, frame, flags, TABLES, frames) };
    match mapped {
        Ok(flush) => flush.ignore(),
        // The image lies in RAM, so its pages come twice.
        Err(MapToError::PageAlreadyMapped(_) | MapToError::ParentEntryHugePage) => {}
        Err(MapToError::FrameAllocationFailed) => panic!("no memory for page tables"),
    }
}

/// Takes frames for tables from the free pages.
struct FromPages;

// SAFETY: the allocator gives each page to one owner.
unsafe impl FrameAllocator<Size4KiB> for FromPages {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let page = pages::alloc(1)?.addr().get() as u64;
        Some(PhysFrame::containing_address(PhysAddr::new(page)))
    }
}

/// Maps pages that are not RAM (Xen's special pages, grant frames) for reading and writing.
///
/// # Safety
/// They must be none of the kernel's own pages. [`activate`] and `pages::add` came before.
pub unsafe fn map_special(region: Region) {
    let (root, _) = Cr3::read();
    // SAFETY: `activate`'s tables are mapped to themselves, and nobody else refers to them: there
    // is one CPU, and this function is not entered twice.
    let table = unsafe { &mut *(root.start_address().as_u64() as *mut PageTable) };
    // SAFETY: all tables lie in RAM, which is mapped to itself.
    let mut tables = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };
    let region = region.pages_around();
    for at in (region.start..region.end).step_by(Size4KiB::SIZE as usize) {
        map::<Size4KiB>(&mut tables, at, DATA, &mut FromPages);
    }
}
