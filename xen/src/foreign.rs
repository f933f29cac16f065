//! Mapping pages that another domain granted.
//!
//! In a domain with a physical address space of its own (PVH, HVM), a foreign page appears at a
//! guest frame that has no memory. After it is unmapped, the frame has none again.
//!
//! To Xen, a restored or migrated domain is a new one, which has mapped nothing.

use crate::abi::grant_table::*;
use crate::hypercall::Operations;
use crate::{DomId, Errno, Gfn, GrantRef, PAGE_SIZE};
use alloc::vec::Vec;

/// Pages of other domains, mapped at guest frames.
///
/// It has no `Drop`: [unmapping](ForeignFrames::unmap) can fail, and the frames' owner must know.
///
/// ```
/// use xen::foreign::ForeignFrames;
/// use xen::{DomId, Errno, Gfn, GrantRef, testing::FakeXen};
///
/// let xen = FakeXen::new();
/// let mut frames = ForeignFrames::default();
/// // SAFETY: in this example the frames are not pages.
/// unsafe { frames.map(&xen, DomId(7), &[GrantRef(8), GrantRef(9)], Gfn(0x100000)) }?;
/// // SAFETY: as above.
/// unsafe { frames.unmap(&xen) }?;
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug, Default)]
pub struct ForeignFrames(Vec<GnttabUnmapGrantRef>);

impl ForeignFrames {
    /// Maps pages that `owner` granted, in the order of `refs`, for reading and writing, at
    /// consecutive frames from `at` on, with one hypercall.
    ///
    /// After an error, some of the pages may be mapped, and are to be
    /// [unmapped](ForeignFrames::unmap). [`Errno::EINVAL`] if `owner` did not grant a page to this
    /// domain, [`Errno::ESRCH`] if there is no such domain, [`Errno::ENOSPC`] if Xen's limit of
    /// mappings is reached, [`Errno::ENOMEM`] if memory is short.
    ///
    /// # Safety
    /// There is no memory at the frames. They are accessed through [`Shared`](crate::Shared) alone,
    /// and only while they are mapped.
    pub unsafe fn map(
        &mut self,
        xen: &impl Operations,
        owner: DomId,
        refs: &[GrantRef],
        at: Gfn,
    ) -> Result<(), Errno> {
        let mut list = Vec::new();
        list.try_reserve_exact(refs.len()).map_err(|_| Errno::ENOMEM)?;
        self.0.try_reserve_exact(refs.len()).map_err(|_| Errno::ENOMEM)?;
        list.extend(refs.iter().zip(at.0..).map(|(grant, frame)| GnttabMapGrantRef {
            host_addr: frame * PAGE_SIZE as u64,
            flags: GNTMAP_HOST_MAP,
            grant: grant.0,
            dom: owner.0,
            // If the hypercall fails, Xen may not have come this far.
            status: GNTST_GENERAL_ERROR,
            handle: 0,
            dev_bus_addr: 0,
        }));
        // SAFETY: the caller's promise.
        let called = unsafe { xen.map_grant_refs(&mut list) };
        let mapped = list.iter().filter(|op| op.status == GNTST_OKAY);
        self.0.extend(mapped.map(|op| GnttabUnmapGrantRef {
            host_addr: op.host_addr,
            dev_bus_addr: 0,
            handle: op.handle,
            status: GNTST_GENERAL_ERROR,
        }));
        called?;
        match list.iter().find(|op| op.status != GNTST_OKAY) {
            None => Ok(()),
            Some(op) => {
                log::debug!("cannot map grant {} of domain {owner}: {}", op.grant, op.status);
                Err(error(op.status))
            }
        }
    }

    /// Unmaps all pages, with at most one hypercall. After an error, those that are still mapped
    /// remain.
    ///
    /// # Safety
    /// Nothing accesses the frames any more.
    pub unsafe fn unmap(&mut self, xen: &impl Operations) -> Result<(), Errno> {
        if self.0.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let called = unsafe { xen.unmap_grant_refs(&mut self.0) };
        self.0.retain(|op| op.status != GNTST_OKAY);
        called?;
        self.0.first().map_or(Ok(()), |op| Err(error(op.status)))
    }
}

/// The error of a `GNTST_*`.
fn error(status: i16) -> Errno {
    match status {
        GNTST_BAD_DOMAIN => Errno::ESRCH,
        GNTST_PERMISSION_DENIED => Errno::EPERM,
        GNTST_EAGAIN => Errno::EAGAIN,
        GNTST_NO_SPACE => Errno::ENOSPC,
        _ => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Done, FakeXen};

    const OWNER: DomId = DomId(7);
    const AT: Gfn = Gfn(0x10_0000);

    fn map(frames: &mut ForeignFrames, xen: &FakeXen, refs: &[u32]) -> Result<(), Errno> {
        let refs: Vec<_> = refs.iter().copied().map(GrantRef).collect();
        // SAFETY: the frames are not pages.
        unsafe { frames.map(xen, OWNER, &refs, AT) }
    }

    fn unmap(frames: &mut ForeignFrames, xen: &FakeXen) -> Result<(), Errno> {
        // SAFETY: the frames are not pages.
        unsafe { frames.unmap(xen) }
    }

    #[test]
    fn one_hypercall_maps_all_pages_in_their_order_and_one_unmaps_them() {
        let (xen, mut frames) = (FakeXen::new(), ForeignFrames::default());
        let refs: Vec<_> = (8..521).rev().collect();
        map(&mut frames, &xen, &refs).unwrap();
        let at: Vec<_> = (AT.0..AT.0 + 513).map(|frame| frame * 4096).collect();
        assert_eq!(
            xen.take_done(),
            [Done::GrantsMapped { owner: 7, flags: 2, refs, at: at.clone() }]
        );
        assert_eq!(xen.mappings(), 513);
        for _ in 0..2 {
            unmap(&mut frames, &xen).unwrap();
        }
        assert_eq!(xen.take_done(), [Done::GrantsUnmapped { at }]);
        assert_eq!(xen.mappings(), 0);
    }

    #[test]
    fn after_a_page_that_cannot_be_mapped_the_others_are_unmapped() {
        let (xen, mut frames) = (FakeXen::new(), ForeignFrames::default());
        for (status, error) in [
            (GNTST_GENERAL_ERROR, Errno::EINVAL),
            (GNTST_BAD_GNTREF, Errno::EINVAL),
            (GNTST_BAD_DOMAIN, Errno::ESRCH),
            (GNTST_PERMISSION_DENIED, Errno::EPERM),
            (GNTST_EAGAIN, Errno::EAGAIN),
            (GNTST_NO_SPACE, Errno::ENOSPC),
        ] {
            xen.grant_results.replace([Ok(GNTST_OKAY), Ok(status), Ok(GNTST_OKAY)].into());
            assert_eq!(map(&mut frames, &xen, &[8, 9, 10]), Err(error));
            xen.take_done();
            unmap(&mut frames, &xen).unwrap();
            let at = vec![AT.0 * 4096, (AT.0 + 2) * 4096];
            assert_eq!(xen.take_done(), [Done::GrantsUnmapped { at }]);
            assert_eq!(xen.mappings(), 0);
        }
    }

    #[test]
    fn pages_that_were_mapped_before_a_hypercall_failed_are_unmapped() {
        let (xen, mut frames) = (FakeXen::new(), ForeignFrames::default());
        let mapped = Ok(GNTST_OKAY);
        xen.grant_results.replace([mapped, mapped, Err(Errno::EFAULT)].into());
        assert_eq!(map(&mut frames, &xen, &[8, 9, 10]), Err(Errno::EFAULT));
        assert_eq!(xen.mappings(), 2);
        xen.grant_results.replace([Err(Errno::EFAULT)].into());
        assert_eq!(unmap(&mut frames, &xen), Err(Errno::EFAULT));
        unmap(&mut frames, &xen).unwrap();
        assert_eq!(xen.mappings(), 0);
    }

    #[test]
    fn pages_that_xen_does_not_unmap_remain() {
        let (xen, mut frames) = (FakeXen::new(), ForeignFrames::default());
        map(&mut frames, &xen, &[8, 9, 10]).unwrap();
        xen.take_done();
        xen.grant_results.replace([Ok(GNTST_OKAY), Ok(GNTST_BAD_HANDLE)].into());
        assert_eq!(unmap(&mut frames, &xen), Err(Errno::EINVAL));
        assert_eq!(xen.mappings(), 1);
        xen.take_done();
        unmap(&mut frames, &xen).unwrap();
        assert_eq!(xen.take_done(), [Done::GrantsUnmapped { at: vec![(AT.0 + 1) * 4096] }]);
    }
}
