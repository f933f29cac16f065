//! The correct part of the liar: the handshake, commands, and a client of the guest's server.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use xen::xenbus::{OtherEnd, State, StateWatch, read_number, switch_state};
use xen::xenstore::Store;
use xen::{Channel, DomId, Errno, GrantRef, Mapping, Neighbour, Port, Shared, Side, Signal};
use xensock::back::Host;
use xensock::ring::{CommandBack, Consumer, NotifyPolicy, Producer, copy_in, copy_out, len};
use xensock::wire::{
    Call, Dialect, Layout, Protocol, RING_LIST, Region, Request, Response, RingGrants,
};
use xensockd::dom0::Dom0;

/// The reason why a lie failed, in words.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Failure(format!("an honest step failed: {error}"))
    }
}

/// A backend that is not connected yet.
pub struct Liar<'h> {
    pub host: &'h Dom0,
    pub store: &'h Store,
    pub guest: DomId,
    pub path: String,
}

/// A connected backend.
pub struct Connected<'h> {
    pub liar: Liar<'h>,
    pub front: StateWatch,
    page: <Dom0 as Neighbour>::Mapping,
    channel: <Dom0 as Neighbour>::Channel,
    signal: Arc<Signal>,
    pub commands: CommandBack,
}

impl<'h> Liar<'h> {
    pub fn new(host: &'h Dom0, store: &'h Store, guest: u16) -> Self {
        Liar { host, store, guest: DomId(guest), path: format!("backend/pvcalls/{guest}/0") }
    }

    /// Writes the backend's nodes: correct ones, except for those among `lies`.
    pub async fn write_nodes(&self, lies: &[(&str, &str)]) -> Result<(), Errno> {
        let plain = Protocol::from(Dialect::PvCalls);
        for (name, value) in plain.backend_nodes(6) {
            self.store.write(&format!("{}/{name}", self.path), value).await?;
        }
        for (name, value) in lies {
            self.store.write(&format!("{}/{name}", self.path), *value).await?;
        }
        Ok(())
    }

    pub async fn say(&self, state: State) -> Result<(), Errno> {
        switch_state(self.store, &self.path, state).await
    }

    /// The frontend's folder, and a watch of its state.
    pub async fn front(&self) -> Result<(OtherEnd, StateWatch), Errno> {
        let other = OtherEnd::frontend_of(self.store, &self.path).await?;
        let watch = StateWatch::new(self.store, &other.path).await?;
        Ok((other, watch))
    }

    /// Connects as a backend should.
    pub async fn connect(self) -> Result<Connected<'h>, Errno> {
        self.write_nodes(&[]).await?;
        let (other, mut front) = self.front().await?;
        self.say(State::InitWait).await?;
        front.wait_for(|state| state == State::Initialised).await?;
        let number =
            async |name| read_number::<u32>(self.store, &format!("{}/{name}", other.path)).await;
        let (grant, port) = (GrantRef(number("ring-ref").await?), Port(number("port").await?));
        let page = self.host.map(self.guest, &[grant])?;
        let signal = Arc::new(Signal::new());
        let channel = self.host.bind_port(self.guest, port, signal.clone())?;
        self.say(State::Connected).await?;
        front.wait_for(|state| state == State::Connected).await?;
        Ok(Connected {
            liar: self,
            front,
            page,
            channel,
            signal,
            commands: CommandBack::new(Dialect::PvCalls),
        })
    }
}

impl<'h> Connected<'h> {
    pub fn page(&self) -> Shared<'_> {
        self.page.shared()
    }

    pub async fn sleep(&self, time: Duration) {
        self.liar.host.sleep(time).await;
    }

    pub fn notify(&self) {
        self.channel.notify();
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> Result<Request, Failure> {
        let request = poll_fn(|cx| {
            self.signal.register(Side::Rx, cx.waker());
            loop {
                match self.commands.pop(self.page.shared()) {
                    Ok(Some(request)) => return Poll::Ready(Ok(request)),
                    Ok(None) if !self.commands.final_check(self.page.shared()) => {
                        return Poll::Pending;
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        });
        let malformed = |_| Failure("the guest sent a malformed request".to_string());
        request.await?.map_err(malformed)
    }

    pub fn answer(&mut self, response: Response) {
        self.commands.push(self.page.shared(), &response);
        // Sent even if the guest needs no event.
        let _ = self.commands.publish(self.page.shared());
        self.notify();
    }

    /// Answers requests with success up to the first for which `wanted` is true, and returns that.
    pub async fn until(&mut self, wanted: impl Fn(&Call) -> bool) -> Result<Request, Failure> {
        loop {
            let request = self.next().await?;
            if wanted(&request.call) {
                return Ok(request);
            }
            self.answer(request.answer(Ok(0)));
        }
    }

    /// Waits until the guest's server accepts.
    pub async fn until_accept(&mut self) -> Result<Request, Failure> {
        self.until(|call| matches!(call, Call::Accept { .. })).await
    }

    /// Lets the guest accept a connection, and returns its client.
    pub async fn connection(&mut self) -> Result<Client, Failure> {
        let request = self.until_accept().await?;
        let client = self.map(&request)?;
        self.answer(request.answer(Ok(0)));
        Ok(client)
    }

    /// Maps the ring that an ACCEPT offers.
    pub fn map(&self, accept: &Request) -> Result<Client, Failure> {
        let Call::Accept { new, ring } = &accept.call else {
            return Err(Failure(format!("not an ACCEPT: {accept:?}")));
        };
        let RingGrants::Indexes(page) = ring.grants else {
            return Err(Failure("a ring of another dialect".to_string()));
        };
        let Liar { host, guest, .. } = self.liar;
        let indexes = host.map(guest, &[page])?;
        let mut list = [0; RING_LIST];
        indexes.shared().read(0, &mut list);
        let (order, grants) = Dialect::PvCalls.read_ring(&list, 6)?;
        let data = host.map(guest, &grants)?;
        let signal = Arc::new(Signal::new());
        let channel = host.bind_port(guest, ring.port, signal.clone())?;
        let layout = Protocol::from(Dialect::PvCalls).layout(order)?;
        Ok(Client {
            id: *new,
            pages: grants.len() + 1,
            input: Producer::new(layout.input),
            output: Consumer::new(layout.output, NotifyPolicy::FullOrEmpty),
            layout,
            indexes,
            data,
            channel,
            signal,
        })
    }

    /// Waits until the guest releases a socket.
    pub async fn until_release(&mut self, id: u64) -> Result<(), Failure> {
        loop {
            let request = self.until(|call| matches!(call, Call::Release { .. })).await?;
            self.answer(request.answer(Ok(0)));
            if request.socket == id {
                return Ok(());
            }
        }
    }

    /// Waits until the guest closes the device, and closes it.
    pub async fn until_closed(mut self) -> Result<(), Failure> {
        self.front.wait_for(|state| !matches!(state, State::Connected)).await?;
        drop((self.page, self.channel));
        self.liar.say(State::Closing).await?;
        self.front.wait_for(|state| matches!(state, State::Closed | State::Initialising)).await?;
        self.liar.say(State::Closed).await?;
        Ok(())
    }

    /// Closes the device as a backend should.
    pub async fn leave(self) -> Result<(), Failure> {
        self.liar.say(State::Closing).await?;
        self.until_closed().await
    }
}

/// A client of the guest's server: the backend's end of a connection.
pub struct Client {
    /// The guest's id of the socket.
    pub id: u64,
    /// The number of pages of its ring.
    pub pages: usize,
    pub layout: Layout,
    pub input: Producer,
    output: Consumer,
    indexes: <Dom0 as Neighbour>::Mapping,
    data: <Dom0 as Neighbour>::Mapping,
    channel: <Dom0 as Neighbour>::Channel,
    signal: Arc<Signal>,
}

impl Client {
    pub fn region(&self) -> Region<'_> {
        Region { indexes: self.indexes.shared(), data: self.data.shared() }
    }

    pub fn notify(&self) {
        self.channel.notify();
    }

    /// Sends text that fits into the ring.
    pub fn say(&mut self, text: &str) -> Result<(), Failure> {
        let region = Region { indexes: self.indexes.shared(), data: self.data.shared() };
        let room = self.input.room(region)?;
        let count = copy_in(&room, text.as_bytes());
        let _ = self.input.advance(region, count);
        self.notify();
        Ok(())
    }

    /// Receives until the guest has sent `last`.
    pub async fn hear(&mut self, last: &str) -> Result<String, Failure> {
        let mut heard = Vec::new();
        poll_fn(|cx| {
            self.signal.register(Side::Rx, cx.waker());
            loop {
                let region = Region { indexes: self.indexes.shared(), data: self.data.shared() };
                let data = match self.output.data(region) {
                    Ok(data) if len(&data) == 0 => return Poll::Pending,
                    Ok(data) => data,
                    Err(error) => return Poll::Ready(Err(Failure::from(error))),
                };
                let mut some = vec![0; len(&data)];
                let count = copy_out(&data, &mut some);
                heard.extend_from_slice(&some);
                let _ = self.output.advance(region, count);
                self.channel.notify();
                let text = String::from_utf8_lossy(&heard);
                if text.contains(last) {
                    return Poll::Ready(Ok(text.into_owned()));
                }
            }
        })
        .await
    }

    /// Requests a page that ends with `last`.
    pub async fn get(&mut self, path: &str, last: &str) -> Result<String, Failure> {
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n"))?;
        self.hear(last).await
    }
}
