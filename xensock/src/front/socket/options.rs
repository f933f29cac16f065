//! Options of a connection, and the size of its ring, which two of them set.

use super::super::rings::Ends;
use super::Socket;
use crate::wire::{Call, Extensions, SocketOption};
use xen::{Errno, Machine};

impl<M: Machine> Socket<M> {
    /// Changes an option. A change of size must run to its end.
    pub(in super::super) async fn set_option(
        &self,
        option: SocketOption,
        value: u32,
    ) -> Result<(), Errno> {
        if option.is_ring_size() {
            return self.set_size(option, value).await;
        }
        self.needs(Extensions::OPTIONS)?;
        self.call(Call::SetOption { option, value }).await.map(drop)
    }

    /// An option's value.
    pub(in super::super) async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        if option.is_ring_size() {
            let ring = self.ring.borrow();
            let layout = ring.as_ref().ok_or_else(|| self.failure())?.pages.layout;
            let input = option == SocketOption::ReceiveBuffer;
            return Ok(if input { layout.input.size } else { layout.output.size });
        }
        self.needs(Extensions::OPTIONS)?;
        Ok(self.call(Call::GetOption { option }).await?.value)
    }

    async fn set_size(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        let former = self.sizes.get();
        let mut sizes = former;
        sizes[usize::from(option == SocketOption::SendBuffer)] = Some(value);
        let order = self.session.order_for(sizes[0], sizes[1]);
        let present = self.ring.borrow().as_ref().ok_or_else(|| self.failure())?.pages.order;
        if order != present {
            self.resize(order).await?;
        }
        self.sizes.set(sizes);
        Ok(())
    }

    /// Switches to a ring of another size. Nothing in the present ring is lost: this end reads the
    /// rest of its `in`, and the backend the rest of its `out`.
    async fn resize(&self, order: u32) -> Result<(), Errno> {
        self.needs(Extensions::RESIZE)?;
        self.leave_former();
        if self.resizing.get() || self.former.borrow().is_some() {
            return Err(Errno::EBUSY);
        }
        let (pages, grants) = self.core.rings.open_pages(&self.session, order)?;
        self.resizing.set(true);
        let answer = self.call(Call::Resize { grants }).await;
        self.resizing.set(false);
        let result = match answer {
            Ok(_) if self.is_open() => {
                self.resized.set(true);
                let before = self.ring.replace(Some(Ends::new(pages)));
                self.former.replace(before);
                self.leave_former();
                Ok(())
            }
            answer => {
                self.core.rings.close_pages(pages);
                // It is unknown which ring the backend uses now.
                if let Err(Errno::ETIMEDOUT) = answer {
                    self.failed.set(Some(Errno::ETIMEDOUT));
                }
                answer.and_then(|_| Err(self.failure()))
            }
        };
        // Writers have waited for the answer.
        self.signal.raise();
        result
    }
}
