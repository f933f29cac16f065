//! Pages that a backend may map.
//!
//! A run of pages is in exactly one place: in use, as [`GrantedPages`]; not granted, as
//! [`ReservedPages`]; in the pool, not granted and kept for reuse; or in quarantine, because the
//! backend still maps it. Neither the pages nor the grants of a quarantined run are used again
//! before the backend has unmapped them.

use crate::{DomId, Errno, GrantRef, Machine, Pages, Shared, WaitList};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::future::Future;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};

/// The most runs of pages that are kept for reuse, and the most pages.
const POOL_CAPACITY: usize = 64;
const POOLED_PAGES: usize = 1024;

/// The first and the longest pause between two attempts to empty the quarantine.
const QUARANTINE_RETRY: Duration = Duration::from_millis(10);
const QUARANTINE_RETRY_MAX: Duration = Duration::from_secs(1);

/// A run of pages, contiguous in this domain's address space, with one grant for each page.
#[must_use = "pages that are not withdrawn are lost"]
pub struct GrantedPages {
    pages: Pages,
    grants: Vec<GrantRef>,
    peer: DomId,
    /// Whether the pages may go to the pool.
    reusable: bool,
}

impl GrantedPages {
    /// The grants, in the order of the pages.
    pub fn grants(&self) -> &[GrantRef] {
        &self.grants
    }

    /// The pages' memory.
    pub fn shared(&self) -> Shared<'_> {
        self.pages.shared()
    }
}

/// A run of pages that a [`PagePool`] took from its machine and that are not granted.
#[must_use = "pages that are not given back are lost"]
pub struct ReservedPages(Pages);

/// How many pages and grants a [`PagePool`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageUsage {
    /// Live grants.
    pub grants: u64,
    /// Pages taken from the machine and not freed: in use, pooled or in quarantine.
    pub pages: u64,
    /// Pages in quarantine.
    pub quarantined_pages: u64,
}

/// Allocates, grants, revokes and frees a frontend's pages.
///
/// # Example
/// ```
/// use xen::frontend::PagePool;
/// use xen::testing::World;
/// use xen::{DomId, Neighbour};
///
/// let world = World::new();
/// let pool = PagePool::new(world.machine(DomId(7)));
/// let pages = pool.share(DomId(0), 2)?;
/// let mapped = world.peer(DomId(0)).map(DomId(7), pages.grants())?;
/// pool.withdraw(pages);
/// assert_eq!(pool.usage().quarantined_pages, 2, "the peer still maps them");
/// drop(mapped);
/// assert!(pool.retry_quarantine());
/// world.assert_clean();
/// # Ok::<(), xen::Errno>(())
/// ```
pub struct PagePool<M> {
    machine: M,
    /// Revoked pages and the only domain that they were ever shared with.
    pool: RefCell<Vec<(DomId, Pages)>>,
    quarantine: RefCell<Vec<GrantedPages>>,
    /// Woken when pages enter the quarantine.
    quarantined: WaitList,
    usage: RefCell<PageUsage>,
}

impl<M: Machine> PagePool<M> {
    /// An empty pool over a machine.
    pub fn new(machine: M) -> Self {
        PagePool {
            machine,
            pool: RefCell::default(),
            quarantine: RefCell::default(),
            quarantined: WaitList::default(),
            usage: RefCell::default(),
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Allocates `count` zeroed pages and grants them to `peer`, all or none. [`Errno::ENOMEM`] if
    /// there is no memory, [`Errno::ENOSPC`] if the grant table is full.
    pub fn share(&self, peer: DomId, count: usize) -> Result<GrantedPages, Errno> {
        let ReservedPages(pages) = self.reserve(count)?;
        self.grant_or_withdraw(peer, pages, false)
    }

    /// Allocates `count` pages, to be granted later.
    ///
    /// ```
    /// # use xen::{DomId, Neighbour, frontend::PagePool, testing::World};
    /// let world = World::new();
    /// let pool = PagePool::new(world.machine(DomId(7)));
    /// let reserved = pool.reserve(2)?;
    /// let granted = pool.share_reserved(DomId(1), reserved).map_err(|(error, _)| error)?;
    /// granted.shared().write(0, b"secret");
    /// let reserved = pool.reclaim(granted).expect("the peer maps none");
    /// let granted = pool.share_reserved(DomId(2), reserved).map_err(|(error, _)| error)?;
    /// let mut bytes = [1; 6];
    /// granted.shared().read(0, &mut bytes);
    /// assert_eq!(bytes, [0; 6]);
    /// let mapped = world.peer(DomId(2)).map(DomId(7), granted.grants())?;
    /// assert!(pool.reclaim(granted).is_none(), "the peer maps them: they are in quarantine");
    /// drop(mapped);
    /// assert!(pool.retry_quarantine());
    /// world.assert_clean();
    /// # Ok::<(), xen::Errno>(())
    /// ```
    pub fn reserve(&self, count: usize) -> Result<ReservedPages, Errno> {
        let pages = match self.machine.alloc(count) {
            Err(Errno::ENOMEM) if !self.pool.borrow().is_empty() => {
                self.drain();
                self.machine.alloc(count)?
            }
            pages => pages?,
        };
        self.usage.borrow_mut().pages += count as u64;
        Ok(ReservedPages(pages))
    }

    /// Zeroes pages and grants them to `peer`, all or none. An error comes with the pages, unless
    /// the peer has mapped one already.
    pub fn share_reserved(
        &self,
        peer: DomId,
        ReservedPages(pages): ReservedPages,
    ) -> Result<GrantedPages, (Errno, Option<ReservedPages>)> {
        pages.shared().zero();
        self.grant(peer, pages, false).map_err(|(error, pages)| (error, self.reclaim(pages)))
    }

    /// Ends the grants of pages and returns the pages. `None` if the peer still maps some: then
    /// the run goes into quarantine.
    pub fn reclaim(&self, mut pages: GrantedPages) -> Option<ReservedPages> {
        if self.revoke(&mut pages) {
            return Some(ReservedPages(pages.pages));
        }
        self.put_in_quarantine(pages);
        None
    }

    /// Frees pages.
    pub fn release(&self, ReservedPages(pages): ReservedPages) {
        self.free(pages);
    }

    /// Like [`share`](PagePool::share), for pages that may be reused: they are taken from the pool
    /// if possible, and return to it. Reused pages still hold what this same peer has already seen;
    /// the caller initialises what must have a value.
    pub fn share_reusable(&self, peer: DomId, count: usize) -> Result<GrantedPages, Errno> {
        let fits = |(owner, pages): &(DomId, Pages)| *owner == peer && pages.count() == count;
        let mut pool = self.pool.borrow_mut();
        if let Some(index) = pool.iter().rposition(fits) {
            let (_, pages) = pool.swap_remove(index);
            drop(pool);
            return self.grant_or_withdraw(peer, pages, true);
        }
        drop(pool);
        Ok(GrantedPages { reusable: true, ..self.share(peer, count)? })
    }

    /// Ends the grants of pages, then pools or frees the pages. If the peer still maps some, the
    /// run goes into quarantine.
    pub fn withdraw(&self, mut pages: GrantedPages) {
        if self.revoke(&mut pages) {
            self.put_back(pages);
        } else {
            self.put_in_quarantine(pages);
        }
    }

    fn put_in_quarantine(&self, pages: GrantedPages) {
        self.usage.borrow_mut().quarantined_pages += pages.pages.count() as u64;
        self.quarantine.borrow_mut().push(pages);
        self.quarantined.wake_all();
    }

    /// Tries again to revoke the grants in quarantine. Returns whether the quarantine is empty.
    pub fn retry_quarantine(&self) -> bool {
        for mut pages in self.quarantine.take() {
            if self.revoke(&mut pages) {
                self.usage.borrow_mut().quarantined_pages -= pages.pages.count() as u64;
                self.put_back(pages);
            } else {
                self.quarantine.borrow_mut().push(pages);
            }
        }
        self.quarantine.borrow().is_empty()
    }

    /// Frees the pages that are kept for reuse.
    pub fn drain(&self) {
        for (_, pages) in self.pool.take() {
            self.free(pages);
        }
    }

    /// Retries the quarantine while `work` runs, and then until it is empty. Then all pages
    /// that `work` has withdrawn are freed.
    pub async fn retry_during<T>(&self, work: impl Future<Output = T>) -> T {
        let result = match select(pin!(work), pin!(self.retry_when_needed())).await {
            Either::Left((result, _)) => result,
            Either::Right((never, _)) => match never {},
        };
        while !self.retry_quarantine() {
            Timer::after(QUARANTINE_RETRY_MAX).await;
        }
        self.drain();
        result
    }

    async fn retry_when_needed(&self) -> Infallible {
        loop {
            let is_needed = || (!self.quarantine.borrow().is_empty()).then_some(());
            self.quarantined.until(is_needed).await;
            let mut pause = QUARANTINE_RETRY;
            Timer::after(pause).await;
            while !self.retry_quarantine() {
                pause = (pause * 2).min(QUARANTINE_RETRY_MAX);
                Timer::after(pause).await;
            }
        }
    }

    /// The pages in quarantine that were granted to `peer`.
    pub fn quarantined(&self, peer: DomId) -> usize {
        let quarantine = self.quarantine.borrow();
        quarantine.iter().filter(|run| run.peer == peer).map(|run| run.pages.count()).sum()
    }

    /// What the pool holds now.
    pub fn usage(&self) -> PageUsage {
        *self.usage.borrow()
    }

    /// Grants all pages, or none.
    fn grant_or_withdraw(
        &self,
        peer: DomId,
        pages: Pages,
        reusable: bool,
    ) -> Result<GrantedPages, Errno> {
        self.grant(peer, pages, reusable).map_err(|(error, pages)| {
            self.withdraw(pages);
            error
        })
    }

    /// Grants all pages. An error comes with those that were granted before it.
    fn grant(
        &self,
        peer: DomId,
        pages: Pages,
        reusable: bool,
    ) -> Result<GrantedPages, (Errno, GrantedPages)> {
        let count = pages.count();
        let mut granted = GrantedPages { pages, grants: Vec::with_capacity(count), peer, reusable };
        for index in 0..count {
            match self.machine.grant(peer, &granted.pages, index) {
                Ok(grant) => {
                    granted.grants.push(grant);
                    self.usage.borrow_mut().grants += 1;
                }
                Err(error) => return Err((error, granted)),
            }
        }
        Ok(granted)
    }

    /// Ends every grant that the peer does not use. Returns whether none is left.
    fn revoke(&self, pages: &mut GrantedPages) -> bool {
        pages.grants.retain(|&grant| match self.machine.revoke(grant) {
            Ok(()) => {
                self.usage.borrow_mut().grants -= 1;
                false
            }
            Err(error) => {
                if error != Errno::EBUSY {
                    log::debug!("revoking grant {} failed: {error}; its page is kept", grant.0);
                }
                true
            }
        });
        pages.grants.is_empty()
    }

    fn put_back(&self, GrantedPages { pages, peer, reusable, .. }: GrantedPages) {
        let is_short = self.machine.is_short();
        if is_short {
            self.drain();
        }
        let mut pool = self.pool.borrow_mut();
        let pooled: usize = pool.iter().map(|(_, pages)| pages.count()).sum();
        let has_room = pool.len() < POOL_CAPACITY && pooled + pages.count() <= POOLED_PAGES;
        if reusable && has_room && !is_short {
            pool.push((peer, pages));
        } else {
            self.free(pages);
        }
    }

    fn free(&self, pages: Pages) {
        self.usage.borrow_mut().pages -= pages.count() as u64;
        // SAFETY: the pages came from this machine's `alloc`. They come here from `put_back`, after
        // `revoke` has ended all of their grants, directly or through the pool, whose pages have no
        // grants; or as `ReservedPages`, which have none either.
        unsafe { self.machine.free(pages) }
    }
}
