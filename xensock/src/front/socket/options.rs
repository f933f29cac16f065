//! Options of a connection, and the size of its ring, which some of them choose.

use super::Socket;
use super::data::Ends;
use crate::wire::{Call, Extensions, SocketOption};
use xen::Errno;
use xen::Machine;

impl<M: Machine> Socket<M> {
    /// Changes an option: a job.
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

    /// An option's value: a job.
    pub(in super::super) async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        if option.is_ring_size() {
            let ring = self.ring.borrow();
            let layout = ring.as_ref().ok_or_else(|| self.failure())?.pages.layout();
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
        let present = self.ring.borrow().as_ref().ok_or_else(|| self.failure())?.pages.order();
        if order != present {
            self.resize(order).await?;
        }
        self.sizes.set(sizes);
        Ok(())
    }

    /// Goes over to a ring of another size. What is in the present one is not lost: this end reads the
    /// rest of `in` there, and the backend the rest of `out`.
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
                // Nobody knows which ring the backend goes on with.
                if let Err(Errno::ETIMEDOUT) = answer {
                    self.failed.set(Some(Errno::ETIMEDOUT));
                }
                answer.and_then(|_| Err(self.failure()))
            }
        };
        // Who wanted to write has waited.
        self.signal.raise();
        result
    }
}
