//! What each command asks for, and who does it.

use super::connection::{self, Origin};
use super::guest::{Guest, Task};
use super::passive::{self, Passive};
use super::socket::{Control, Plan, Socket};
use super::{Host, Socket as _};
use crate::wire::{Call, Family, Options, Request, SocketOption};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::rc::Rc;
use core::net::SocketAddr;
use xen::Errno;

impl<H: Host> Guest<'_, H> {
    /// Carries out a request at once, or returns the task that will.
    pub(super) fn begin(&self, request: Request) -> Option<Task<'_>> {
        let done = match &request.call {
            Call::Socket { family } => self.socket(&request, *family),
            Call::Bind { .. } => self.bind(&request),
            Call::Listen { .. } => self.listen(&request),
            Call::Connect { .. } => self.connect(&request).map(Some),
            Call::Accept { .. } => self.accept(&request).map(Some),
            Call::Poll => self.poll(&request).map(Some),
            Call::Release { .. } => self.release(&request),
            Call::SetOption { option, value } => self.set_option(&request, *option, *value),
            Call::GetOption { option } => self.option(&request, *option),
            Call::LocalAddr => self.local_addr(&request),
            Call::PeerAddr | Call::Shutdown { .. } | Call::Resize { .. } => {
                self.of_connection(&request)
            }
        };
        match done {
            Ok(Some(task)) => Some(task),
            Ok(None) => None,
            Err(error) => {
                self.answer(request.answer(Err(error)));
                None
            }
        }
    }

    fn done(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        self.answer(request.answer(Ok(0)));
        Ok(None)
    }

    /// Takes a name for a new socket.
    fn claim(&self, id: u64, socket: Socket<H>) -> Result<(), Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let count = sockets.len();
        match sockets.entry(id) {
            Entry::Occupied(_) => Err(Errno::EEXIST),
            Entry::Vacant(_) if count >= self.limits.sockets => Err(Errno::EMFILE),
            Entry::Vacant(entry) => {
                entry.insert(socket);
                Ok(())
            }
        }
    }

    /// Makes the socket that a dialect without a command for it expects to be there.
    fn ensure(&self, id: u64) -> Result<(), Errno> {
        if self.protocol.dialect.has_socket_command() {
            return Ok(());
        }
        match self.claim(id, Socket::Fresh(Plan::default())) {
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn socket(&self, request: &Request, family: Family) -> Result<Option<Task<'_>>, Errno> {
        let plan = Plan { family: Some(family), options: Options::new() };
        self.claim(request.socket, Socket::Fresh(plan))?;
        self.done(request)
    }

    fn bind(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let Call::Bind { addr } = request.call else { return Err(Errno::EINVAL) };
        self.ensure(request.socket)?;
        let mut sockets = self.sockets.borrow_mut();
        let Some(Socket::Fresh(plan)) = sockets.get(&request.socket) else {
            return Err(Errno::EINVAL);
        };
        let plan = *plan;
        let bound = plan.suits(addr).and_then(|()| self.host.bind(self.id, addr, &plan.options));
        let name = match bound {
            Ok(bound) => {
                let name = bound.local_addr().ok();
                let passive = Rc::new(Passive::new(bound, plan.options));
                sockets.insert(request.socket, Socket::Passive(passive));
                name
            }
            Err(error) => {
                self.back_to_fresh(&mut sockets, request.socket, plan);
                return Err(error);
            }
        };
        drop(sockets);
        self.answer_with(request.answer(Ok(0)), name);
        Ok(None)
    }

    fn set_option(
        &self,
        request: &Request,
        option: SocketOption,
        value: u32,
    ) -> Result<Option<Task<'_>>, Errno> {
        self.ensure(request.socket)?;
        match self.sockets.borrow_mut().get_mut(&request.socket) {
            Some(Socket::Fresh(plan)) => plan.options.set(option, value),
            Some(Socket::Passive(passive)) => passive.set_option(option, value)?,
            Some(Socket::Active(control)) => return Self::hand_over(control, request),
            Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
        }
        self.done(request)
    }

    fn option(&self, request: &Request, option: SocketOption) -> Result<Option<Task<'_>>, Errno> {
        let value = match self.sockets.borrow().get(&request.socket) {
            // The operating system's own values are not known before there is a socket of its.
            Some(Socket::Fresh(plan)) => plan.options.get(option).ok_or(Errno::ENOTCONN)?,
            Some(Socket::Passive(passive)) => passive.option(option)?,
            Some(Socket::Active(control)) => return Self::hand_over(control, request),
            Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
        };
        self.answer(request.answer(Ok(value)));
        Ok(None)
    }

    fn local_addr(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let passive = match self.sockets.borrow().get(&request.socket) {
            Some(Socket::Passive(passive)) => passive.clone(),
            _ => return self.of_connection(request),
        };
        self.answer_with(request.answer(Ok(0)), Some(passive.local_addr()?));
        Ok(None)
    }

    /// A request that only a connection can carry out.
    fn of_connection(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        match self.sockets.borrow().get(&request.socket) {
            Some(Socket::Active(control)) => Self::hand_over(control, request),
            Some(Socket::Fresh(_) | Socket::Passive(_)) => Err(Errno::ENOTCONN),
            Some(Socket::Leaving) | None => Err(Errno::EINVAL),
        }
    }

    /// Gives a request to a connection's own task.
    fn hand_over<'g>(control: &Control, request: &Request) -> Result<Option<Task<'g>>, Errno> {
        if !control.is_open() {
            return Err(Errno::ENOTCONN);
        }
        control.ask(request.clone());
        Ok(None)
    }

    fn listen(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let Call::Listen { backlog } = request.call else { return Err(Errno::EINVAL) };
        self.passive(request.socket)?.listen(self.host, backlog)?;
        self.done(request)
    }

    fn connect(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let Call::Connect { addr, ref ring, .. } = request.call else {
            return Err(Errno::EINVAL);
        };
        self.ensure(request.socket)?;
        let control = Rc::new(Control::default());
        let plan = {
            let mut sockets = self.sockets.borrow_mut();
            match sockets.get_mut(&request.socket) {
                Some(Socket::Fresh(plan)) => {
                    let plan = *plan;
                    if let Err(error) = plan.suits(addr) {
                        self.back_to_fresh(&mut sockets, request.socket, plan);
                        return Err(error);
                    }
                    sockets.insert(request.socket, Socket::Active(control.clone()));
                    plan
                }
                Some(Socket::Active(_)) => return Err(Errno::EISCONN),
                Some(Socket::Passive(_)) => return Err(Errno::EOPNOTSUPP),
                Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
            }
        };
        let origin = Origin::Connect(addr, plan);
        let id = request.socket;
        Ok(Box::pin(connection::run(self, id, control, origin, ring.clone(), request.clone())))
    }

    fn accept(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let Call::Accept { new, ref ring } = request.call else { return Err(Errno::EINVAL) };
        let passive = self.passive(request.socket)?;
        let turn = passive.queue()?;
        let control = Rc::new(Control::default());
        self.claim(new, Socket::Active(control.clone()))?;
        let origin = Origin::Accept(turn);
        Ok(Box::pin(connection::run(self, new, control, origin, ring.clone(), request.clone())))
    }

    fn poll(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let turn = self.passive(request.socket)?.queue()?;
        Ok(Box::pin(passive::poll(self, turn, request.clone())))
    }

    fn release(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let socket = sockets.get_mut(&request.socket).ok_or(Errno::EINVAL)?;
        match core::mem::replace(socket, Socket::Leaving) {
            Socket::Fresh(_) => {
                sockets.remove(&request.socket);
                drop(sockets);
                self.done(request)
            }
            Socket::Active(control) => {
                // The connection's own task answers when it is through.
                control.ask(request.clone());
                Ok(None)
            }
            Socket::Passive(passive) => {
                Ok(Some(Box::pin(passive::release(self, passive, request.clone()))))
            }
            Socket::Leaving => Err(Errno::EINVAL),
        }
    }

    fn passive(&self, id: u64) -> Result<Rc<Passive<H>>, Errno> {
        match self.sockets.borrow().get(&id) {
            Some(Socket::Passive(passive)) => Ok(passive.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Undoes what a CONNECT that failed made of a socket.
    pub(super) fn reset(&self, id: u64, plan: Plan) {
        self.back_to_fresh(&mut self.sockets.borrow_mut(), id, plan);
    }

    fn back_to_fresh(&self, sockets: &mut BTreeMap<u64, Socket<H>>, id: u64, plan: Plan) {
        if self.protocol.dialect.has_socket_command() {
            sockets.insert(id, Socket::Fresh(plan));
        } else {
            sockets.remove(&id);
        }
    }
}

impl Plan {
    /// Whether a socket of this plan can have an address: [`Errno::EAFNOSUPPORT`] if not.
    fn suits(&self, addr: SocketAddr) -> Result<(), Errno> {
        match self.family {
            Some(family) if family != Family::of(addr) => Err(Errno::EAFNOSUPPORT),
            _ => Ok(()),
        }
    }
}
