//! Pages that the backend may read and write: granted once, when a session begins, and taken back when it
//! ends.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use xen::{DomId, Errno, GrantRef, Machine, Pages, Shared, WaitList};

/// A page and its grant.
pub(super) struct Granted {
    page: Pages,
    grant: GrantRef,
}

impl Granted {
    pub(super) fn grant(&self) -> GrantRef {
        self.grant
    }

    pub(super) fn shared(&self) -> Shared<'_> {
        self.page.shared()
    }
}

/// Grants pages of a machine, and takes them back as soon as the peer lets go.
pub(super) struct Grants<M> {
    machine: M,
    /// Pages that the peer has mapped still.
    quarantine: RefCell<Vec<Granted>>,
    /// Told when something enters the quarantine.
    pub(super) quarantined: WaitList,
    live: Cell<usize>,
}

impl<M: Machine> Grants<M> {
    pub(super) fn new(machine: M) -> Self {
        Grants {
            machine,
            quarantine: RefCell::default(),
            quarantined: WaitList::default(),
            live: Cell::new(0),
        }
    }

    pub(super) fn machine(&self) -> &M {
        &self.machine
    }

    /// Grants a zeroed page.
    pub(super) fn page(&self, peer: DomId) -> Result<Granted, Errno> {
        let page = self.machine.alloc(1)?;
        match self.machine.grant(peer, &page, 0) {
            Ok(grant) => {
                self.live.set(self.live.get() + 1);
                Ok(Granted { page, grant })
            }
            Err(error) => {
                // SAFETY: it is this machine's, and there is no grant of it.
                unsafe { self.machine.free(page) };
                Err(error)
            }
        }
    }

    /// Grants so many pages, or none.
    pub(super) fn pages(&self, peer: DomId, count: usize) -> Result<Vec<Granted>, Errno> {
        let mut pages = Vec::with_capacity(count);
        for _ in 0..count {
            match self.page(peer) {
                Ok(page) => pages.push(page),
                Err(error) => {
                    pages.into_iter().for_each(|page| self.withdraw(page));
                    return Err(error);
                }
            }
        }
        Ok(pages)
    }

    /// Ends a grant and frees its page, now or once the peer lets go.
    pub(super) fn withdraw(&self, page: Granted) {
        if let Err(page) = self.try_withdraw(page) {
            self.quarantine.borrow_mut().push(page);
            self.quarantined.wake_all();
        }
    }

    fn try_withdraw(&self, page: Granted) -> Result<(), Granted> {
        if let Err(error) = self.machine.revoke(page.grant) {
            if error != Errno::EBUSY {
                log::debug!("revoking grant {} failed: {error}; its page is kept", page.grant.0);
            }
            return Err(page);
        }
        self.live.set(self.live.get() - 1);
        // SAFETY: it is this machine's, and its only grant has just ended.
        unsafe { self.machine.free(page.page) };
        Ok(())
    }

    /// Tries again to end the grants in quarantine; whether there is none left.
    pub(super) fn retry_quarantine(&self) -> bool {
        for page in self.quarantine.take() {
            if let Err(page) = self.try_withdraw(page) {
                self.quarantine.borrow_mut().push(page);
            }
        }
        self.quarantine_is_empty()
    }

    pub(super) fn quarantine_is_empty(&self) -> bool {
        self.quarantine.borrow().is_empty()
    }

    /// Pages that are granted, and how many of them are in quarantine.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.live.get(), self.quarantine.borrow().len())
    }
}
