//! Maps other domains' pages through `/dev/xen/gntdev` (Linux's `include/uapi/xen/gntdev.h`).
//!
//! A domain cannot revoke a grant while it is mapped, and mapped pages outlive even the domain. So
//! mapped memory stays readable and writable until the mapping is dropped.
//!
//! The driver keeps the mappings of an open file in a list, which it searches for each request. So
//! a file has a bounded number of mappings at a time. A mapping takes a place that an earlier one
//! has left before another file is opened: no order of mappings makes many files.

use crate::counts::{Counts, Ticket};
use crate::device::{explain, request};
use crate::errno;
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::cell::RefCell;
use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use xen::{DomId, Errno, GrantRef, PAGE_SIZE, Shared};

/// The device file that maps grants.
pub const DEVICE: &str = "/dev/xen/gntdev";

/// The most mappings through one open file.
const MAPPINGS: usize = 64;

/// The device, open.
pub struct GntDev {
    /// For copies, and for the first mappings.
    first: Rc<OwnedFd>,
    /// The files that have mappings, and places in them.
    files: RefCell<Vec<Weak<OwnedFd>>>,
    counts: Counts,
}

impl GntDev {
    /// Opens the device. Mappings and their pages are counted. An error is a line for the user.
    pub fn open(counts: &Counts) -> Result<Self, String> {
        let first = open_file().map_err(|error| explain(DEVICE, "xen-gntdev", error))?;
        Ok(GntDev { first: Rc::new(first), files: RefCell::default(), counts: counts.clone() })
    }

    /// A file with a place for another mapping. Each mapping holds its file.
    fn file(&self) -> Result<Rc<OwnedFd>, Errno> {
        place(&self.first, &mut self.files.borrow_mut(), || open_file().map_err(errno))
    }

    /// Copies the first bytes of a page that `owner` granted, without mapping it. [`Errno::EFAULT`]
    /// if the grant cannot be used.
    pub fn copy(&self, owner: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno> {
        let len = to.len().min(PAGE_SIZE) as u16;
        let mut segment = CopySegment {
            grant: page.0,
            offset: 0,
            domain: owner.0,
            to: to.as_mut_ptr(),
            len,
            flags: SOURCE_IS_GRANT,
            status: 0,
        };
        let request = GrantCopy { count: 1, segments: &raw mut segment };
        // SAFETY: the structure is the one that the driver reads. Its one segment outlives the
        // call. The driver writes `len` bytes to `to`, which is that long and borrowed for writing.
        unsafe { ioctl(&*self.first, request) }.map_err(errno)?;
        if segment.status == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Maps pages that `owner` granted, one after the other, for reading and writing.
    ///
    /// [`Errno::EFAULT`] if a grant cannot be mapped: the driver does not report the hypervisor's
    /// reason. [`Errno::EMFILE`] or [`Errno::ENOMEM`] if this process has no more files, mappings
    /// or memory.
    pub fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        let count = u32::try_from(refs.len()).map_err(|_| Errno::E2BIG)?;
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        let mapping = Ticket::take(&self.counts.mappings).ok_or(Errno::ENOMEM)?;
        let pages = Ticket::take_many(&self.counts.pages, count.into()).ok_or(Errno::ENOMEM)?;
        let file = self.file()?;
        let request = MapGrantRef::new(owner, count, refs);
        // SAFETY: the request is laid out as the driver reads it: a header that counts the
        // references, and that many of them behind it.
        let index = unsafe { ioctl(&*file, request) }.map_err(errno)?;
        let len = refs.len() * PAGE_SIZE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &*file, index) };
        match mapped {
            Ok(start) => Ok(MappedPages {
                file,
                start: start.cast(),
                len,
                index,
                count,
                _tickets: [mapping, pages],
            }),
            Err(error) => {
                log::debug!("mapping {count} grants of domain {owner} failed: {error}");
                forget(&file, index, count);
                Err(refused(error))
            }
        }
    }
}

/// The first one of some files that has a place, or another one that is opened.
fn place(
    first: &Rc<OwnedFd>,
    files: &mut Vec<Weak<OwnedFd>>,
    open: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<Rc<OwnedFd>, Errno> {
    // It also has an owner that is not a mapping.
    if Rc::strong_count(first) <= MAPPINGS {
        return Ok(first.clone());
    }
    files.retain(|file| file.strong_count() > 0);
    if let Some(file) = files.iter().find(|file| file.strong_count() < MAPPINGS)
        && let Some(file) = file.upgrade()
    {
        return Ok(file);
    }
    let file = Rc::new(open()?);
    files.push(Rc::downgrade(&file));
    Ok(file)
}

/// The error of a mapping that the kernel refuses.
fn refused(error: rustix::io::Errno) -> Errno {
    match error {
        // The process has too many mappings, or the kernel too little memory.
        rustix::io::Errno::NOMEM => Errno::ENOMEM,
        _ => Errno::EFAULT,
    }
}

fn open_file() -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Pages of another domain. Dropping them unmaps them.
pub struct MappedPages {
    file: Rc<OwnedFd>,
    start: *mut u8,
    len: usize,
    index: u64,
    count: u32,
    _tickets: [Ticket; 2],
}

impl MappedPages {
    /// See [`xen::Neighbour::set_unmap_notify`]. `port` is the number of this domain's end.
    pub(crate) fn set_unmap_notify(&self, offset: usize, port: u32) -> Result<(), Errno> {
        // Beyond the end, the file may have another mapping.
        if offset >= self.len {
            return Err(Errno::EINVAL);
        }
        let action = CLEAR_BYTE | SEND_EVENT;
        let request = UnmapNotify { index: self.index + offset as u64, action, port };
        // SAFETY: the structure is the one that the driver reads. It clears a byte of memory that
        // no reference points to.
        unsafe { ioctl(&*self.file, request) }.map_err(errno)
    }
}

impl xen::Mapping for MappedPages {
    fn shared(&self) -> Shared<'_> {
        // SAFETY: the pages stay mapped until `self` is dropped, and the result borrows `self`. No
        // other code unmaps them or makes references to them.
        unsafe { Shared::new(self.start, self.len) }
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this range, and every `Shared` of it borrowed `self`.
        if let Err(error) = unsafe { munmap(self.start.cast::<c_void>(), self.len) } {
            log::error!("{DEVICE}: unmapping {} pages failed: {error}", self.count);
            return;
        }
        forget(&self.file, self.index, self.count);
    }
}

/// Gives a range of grants back to the driver, which unmaps them if they were mapped.
fn forget(file: &OwnedFd, index: u64, count: u32) {
    let request = UnmapGrantRef { index, count, pad: 0 };
    // SAFETY: the structure is the one that the driver reads.
    if let Err(error) = unsafe { ioctl(file, request) } {
        log::error!("{DEVICE}: giving back {count} grants failed: {error}");
    }
}

/// `struct ioctl_gntdev_map_grant_ref`, with an array of any length.
struct MapGrantRef {
    /// `count`, `pad`; `index`; then one word for each pair of `domid` and `ref`.
    words: Vec<u64>,
}

impl MapGrantRef {
    fn new(owner: DomId, count: u32, refs: &[GrantRef]) -> Self {
        let mut words = Vec::with_capacity(2 + refs.len());
        words.extend([pair(count, 0), 0]);
        words.extend(refs.iter().map(|grant| pair(u32::from(owner.0), grant.0)));
        MapGrantRef { words }
    }
}

/// Two adjacent 32-bit members of a structure, as one word.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

// SAFETY: the opcode is IOCTL_GNTDEV_MAP_GRANT_REF, whose argument is a pointer to the structure
// that `words` holds; the driver writes `index`, the second word, and nothing else.
unsafe impl Ioctl for MapGrantRef {
    type Output = u64;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        // The size is that of the structure with one reference.
        opcode::from_components(Direction::None, b'G', 0, 24)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, argument: *mut c_void) -> rustix::io::Result<u64> {
        // SAFETY: `argument` is the result of `as_ptr`: at least two words, exclusively borrowed
        // for the call.
        Ok(unsafe { argument.cast::<u64>().add(1).read() })
    }
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

/// `struct ioctl_gntdev_unmap_notify`.
#[repr(C)]
struct UnmapNotify {
    /// The byte's offset in the file, as for `mmap`.
    index: u64,
    action: u32,
    port: u32,
}

/// `UNMAP_NOTIFY_CLEAR_BYTE` and `UNMAP_NOTIFY_SEND_EVENT`: what to do when the mapping ends.
const CLEAR_BYTE: u32 = 1;
const SEND_EVENT: u32 = 2;

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
struct GrantCopy {
    count: u32,
    segments: *mut CopySegment,
}

/// `struct gntdev_grant_copy_segment`, from another domain's page to this process's memory.
#[repr(C)]
struct CopySegment {
    grant: u32,
    offset: u16,
    domain: u16,
    to: *mut u8,
    len: u16,
    flags: u16,
    /// Written by the driver: 0, or the hypervisor's error.
    status: i16,
}

/// `GNTCOPY_source_gref`: the source is a grant, the destination is not.
const SOURCE_IS_GRANT: u16 = 1;

request!(UnmapGrantRef, b'G', 1, (), _done => ());
request!(UnmapNotify, b'G', 7, (), _done => ());
request!(GrantCopy, b'G', 8, (), _done => ());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_order_of_mappings_makes_more_files_than_mappings_need() {
        let null = || Ok(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let (first, mut files) = (Rc::new(null().unwrap()), Vec::new());
        let mut mapped: Vec<_> =
            (0..10 * MAPPINGS).map(|_| place(&first, &mut files, null).unwrap()).collect();
        assert_eq!(files.len(), 9);
        // All but one of each file end, and as many begin.
        for _ in 0..5 {
            let mut at = 0;
            mapped.retain(|_| {
                at += 1;
                at % MAPPINGS == 0
            });
            assert_eq!(mapped.len(), 10);
            mapped.extend((10..10 * MAPPINGS).map(|_| place(&first, &mut files, null).unwrap()));
            assert_eq!(files.len(), 9);
        }
        for file in &mapped {
            assert!(Rc::strong_count(file) <= MAPPINGS + usize::from(Rc::ptr_eq(file, &first)));
        }
        let full = || Err(Errno::EMFILE);
        assert_eq!(place(&first, &mut files, full).err(), Some(Errno::EMFILE));
        mapped.clear();
        drop(place(&first, &mut files, full).unwrap());
        assert!(files.iter().all(|file| file.strong_count() == 0), "they are closed");
    }

    #[test]
    fn a_guest_is_blamed_for_its_grants_but_not_for_a_lack_of_memory() {
        assert_eq!(refused(rustix::io::Errno::INVAL), Errno::EFAULT);
        assert_eq!(refused(rustix::io::Errno::NOMEM), Errno::ENOMEM);
    }

    #[test]
    fn requests_have_the_numbers_of_the_header() {
        // _IOC(_IOC_NONE, 'G', 0, 24) and _IOC(_IOC_NONE, 'G', 1, 16) on x86.
        let map = MapGrantRef::new(DomId(3), 2, &[GrantRef(8), GrantRef(9)]);
        assert_eq!(map.opcode(), 0x0018_4700);
        assert_eq!(UnmapGrantRef { index: 0, count: 0, pad: 0 }.opcode(), 0x0010_4701);
        assert_eq!(UnmapNotify { index: 0, action: 0, port: 0 }.opcode(), 0x0010_4707);
        assert_eq!(GrantCopy { count: 0, segments: std::ptr::null_mut() }.opcode(), 0x0010_4708);
        assert_eq!(map.words, [2, 0, 3 | 8 << 32, 3 | 9 << 32]);
        assert_eq!(size_of::<CopySegment>(), 24);
    }
}
