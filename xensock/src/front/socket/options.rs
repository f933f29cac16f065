//! Options of a socket, and the size of its ring, which two of them set.

use super::super::link::Session;
use super::{Kind, Socket};
use crate::wire::{Call, Extensions, Family, Options, SocketOption};
use alloc::rc::Rc;
use alloc::vec::Vec;
use xen::{Errno, Machine};

/// The sizes of `in` and `out` that the options request.
pub(in super::super) fn requested_sizes(options: &Options) -> [Option<u32>; 2] {
    [SocketOption::ReceiveBuffer, SocketOption::SendBuffer].map(|option| options.get(option))
}

/// The calls that create a socket, if the dialect has a call for that, and set its options.
pub(in super::super) fn preparations(
    session: &Session,
    kind: Kind,
    family: Family,
    options: &Options,
) -> Vec<Call> {
    let create = match kind {
        Kind::Stream => {
            session.protocol.dialect.has_socket_command().then_some(Call::Socket { family })
        }
        Kind::Datagrams => Some(Call::DatagramSocket { family }),
    };
    let options = options.iter().filter(|(option, _)| !option.is_ring_size());
    let set = options.map(|(option, value)| Call::SetOption { option, value });
    create.into_iter().chain(set).collect()
}

impl<M: Machine> Socket<M> {
    /// Changes an option. A change of size must run to its end.
    pub(in super::super) async fn set_option(
        self: &Rc<Self>,
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

    async fn set_size(self: &Rc<Self>, option: SocketOption, value: u32) -> Result<(), Errno> {
        let former = self.sizes.get();
        let mut sizes = former;
        sizes[usize::from(option == SocketOption::SendBuffer)] = Some(value);
        // From here on the ring does not change its size by itself.
        self.sizes.set(sizes);
        self.resized().await;
        let order = self.session.order_for(sizes);
        let result = match self.order() {
            Ok(present) if present == order => Ok(()),
            Ok(_) => self.resize(order).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.sizes.set(former);
        }
        self.watch_size();
        result
    }
}
